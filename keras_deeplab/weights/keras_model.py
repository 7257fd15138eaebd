"""The weights of Keras models: those of this package, and any others."""

from __future__ import annotations

import keras
import numpy as np

from keras_deeplab.graph.network import own_weights
from keras_deeplab.weights import names
from keras_deeplab.weights.checkpoint import Checkpoint
from keras_deeplab.weights.errors import WeightsError
from keras_deeplab.weights.transfer import weighted_layers

_OF_BACKBONE = ("backbone_options", "stride_on", "preprocessing")
# Arguments that have nothing to do with the weights.
_UNRELATED = "name dtype input_shape trainable frozen_layers norm_settings backbone".split()


def unwrapped(model: keras.Model) -> keras.Model:
    """The model inside a wrapper such as MultiScale; any other model itself."""
    while _is_of_this_package(model) and not hasattr(model, "backbone"):
        model = model.model
    return model


def checkpoint_of(model: keras.Model, path: str) -> Checkpoint:
    """The weights of a model."""
    model = unwrapped(model)
    values = {
        f"{place}/{weight.name}": np.asarray(weight)
        for place, layer in weighted_layers(model).items()
        for weight in own_weights(layer)
    }
    if not values:
        raise WeightsError(path, f"the model '{model.name}' has no weights")
    if not _is_of_this_package(model):
        # A network of keras.applications, or one with its own names.
        arrays = {"/".join(name.split("/")[-2:]): value for name, value in values.items()}
        known = names.recognize(Checkpoint(path, arrays)) if len(arrays) == len(values) else None
        return known or Checkpoint(path, values, title=f"the Keras model '{model.name}'")
    config = model.get_config()
    backbone = config["backbone"]
    of_backbone = {key: config[key] for key in _OF_BACKBONE if config.get(key) is not None}
    arguments = {k: v for k, v in config.items() if k not in (*_UNRELATED, *_OF_BACKBONE)}
    named = isinstance(backbone, str)
    if not named:  # a user's network, which the model keeps as its configuration
        arguments["backbone"] = keras.saving.deserialize_keras_object(backbone)
    return Checkpoint(
        path,
        values,
        title=f"a {type(model).__name__} on {backbone if named else model.backbone.name}",
        backbone=backbone if named else None,
        backbone_arguments=of_backbone,
        model=type(model).__name__,
        model_arguments=arguments,
    )


def _is_of_this_package(model: keras.Model) -> bool:
    return keras.saving.get_registered_name(type(model)).startswith("keras_deeplab>")
