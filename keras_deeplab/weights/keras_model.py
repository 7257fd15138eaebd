"""The weights of Keras models: those of this package, and any others."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_deeplab.graph.network import own_weights
from keras_deeplab.weights import names
from keras_deeplab.weights.checkpoint import Checkpoint
from keras_deeplab.weights.errors import WeightsError
from keras_deeplab.weights.transfer import weighted_layers

_SHARED = ("backbone_options", "stride_on", "preprocessing")
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
        if len(arrays) == len(values):
            known = names.keras_applications.recognize(Checkpoint(path, arrays))
            if known is not None:
                return known
        return Checkpoint(path, values, title=f"the Keras model '{model.name}'")
    config = model.get_config()
    named = isinstance(config["backbone"], str)
    arguments: dict[str, Any] = {
        key: value for key, value in config.items() if key not in (*_UNRELATED, *_SHARED)
    }
    if not named:  # a user's network, which the model keeps as its configuration
        arguments["backbone"] = keras.saving.deserialize_keras_object(config["backbone"])
    return Checkpoint(
        path,
        values,
        title=f"{type(model).__name__} of this package",
        backbone=config["backbone"] if named else None,
        backbone_arguments={key: config[key] for key in _SHARED if config.get(key) is not None},
        model=type(model).__name__,
        model_arguments=arguments,
    )


def _is_of_this_package(model: keras.Model) -> bool:
    return keras.saving.get_registered_name(type(model)).startswith("keras_deeplab>")
