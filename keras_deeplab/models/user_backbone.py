"""Networks that users bring as backbones: checked, and kept as a configuration."""

from __future__ import annotations

import copy
from typing import Any

import keras

from keras_deeplab.backbones import NAMES
from keras_deeplab.graph.network import functional, leaf_layers


def serialized_backbone(network: Any, channels: int) -> dict[str, Any]:
    """Checks a user's network and returns the configuration that stands for it.

    Only the configuration is kept: the network itself, held as an attribute, would double the
    weights.

    Args:
        network: What the user gave as `backbone`.
        channels: Channels of the model's input.

    Raises:
        ValueError: If it is not a network from one image to one map of features, or holds a layer
            that could not be loaded again; the error names it.
    """
    try:
        graph = functional(network)
    except ValueError as error:
        raise ValueError(
            f"`backbone` must be one of {NAMES} or a functional Keras model, received "
            f"{network!r}. {error}"
        ) from error
    if len(graph.inputs) != 1 or len(graph.inputs[0].shape) != 4:
        raise ValueError(
            f"The backbone '{network.name}' must have one input of shape (batch, height, width, "
            f"channels); it has {[tuple(x.shape) for x in graph.inputs]}."
        )
    if len(graph.outputs) != 1 or len(graph.outputs[0].shape) != 4:
        raise ValueError(
            f"The backbone '{network.name}' must have one output of shape (batch, height, width, "
            f"channels); it has {[tuple(x.shape) for x in graph.outputs]}. Build it without its "
            "classifier (include_top=False)."
        )
    if graph.inputs[0].shape[-1] != channels:
        raise ValueError(
            f"The backbone '{network.name}' takes {graph.inputs[0].shape[-1]} channels, but "
            f"`input_shape` has {channels}."
        )
    for name, layer in leaf_layers(network).items():
        _check_layer(network, name, layer)
    config = keras.saving.serialize_keras_object(network)
    # A loss or metric of the user's has no part in this model and might not load again.
    config.pop("compile_config", None)
    return _without_addresses(config)


def _without_addresses(config: Any) -> Any:
    """The configuration without the object numbers that Keras adds while it loads a file.

    They are addresses in memory and would join unrelated objects in a later process.
    """
    if isinstance(config, dict):
        return {
            key: _without_addresses(value)
            for key, value in config.items()
            if key != "shared_object_id"
        }
    if isinstance(config, list | tuple):
        return type(config)(_without_addresses(value) for value in config)
    return config


def _check_layer(network: keras.Model, name: str, layer: keras.layers.Layer) -> None:
    if isinstance(layer, keras.layers.Lambda):
        raise ValueError(
            f"The layer '{name}' of the backbone '{network.name}' is a Lambda: the model could not "
            "be loaded again from a .keras file. Write it as a layer class."
        )
    try:
        layer.get_config()
    except Exception as error:
        raise ValueError(
            f"The layer '{name}' ({type(layer).__name__}) of the backbone '{network.name}' has no "
            f"working get_config: the model could not be loaded again. {error}"
        ) from error


def restored_backbone(backbone: Any, custom_objects: Any = None) -> Any:
    """The network from its configuration; names and networks are returned as they are."""
    if isinstance(backbone, dict):
        # Keras empties the dict that it reads; the model that keeps it will need it again.
        config = copy.deepcopy(backbone)
        return keras.saving.deserialize_keras_object(config, custom_objects=custom_objects)
    return backbone
