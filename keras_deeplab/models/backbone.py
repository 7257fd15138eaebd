"""The network inside a model: built or checked, with its feature taps, and in a configuration."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

import keras

from keras_deeplab import backbones, graph
from keras_deeplab.graph.network import functional, leaf_layers
from keras_deeplab.models.arguments import MODEL_OPTIONS
from keras_deeplab.validation import error


def build_backbone(arguments: Mapping[str, Any]) -> keras.Model:
    """Returns the backbone at its own output stride: built by name, or the user's, checked."""
    backbone, channels = arguments["backbone"], arguments["input_shape"][2]
    if not isinstance(backbone, str):
        _check_network(backbone, channels)
        return backbone
    own = {key: arguments[key] for key in MODEL_OPTIONS if key in arguments}
    options = {**arguments["backbone_options"], **own}
    return backbones.build(backbone, (None, None, channels), **options)


def _check_network(network: Any, channels: int) -> None:
    try:
        found = functional(network)
    except ValueError as reason:
        rule = f"one of {', '.join(map(repr, backbones.NAMES))} or a functional Keras model"
        raise error("backbone", rule, network, str(reason)) from reason
    shapes = [tuple(tensor.shape) for tensor in (*found.inputs, *found.outputs)]
    are_maps = len(shapes) == 2 and all(len(shape) == 4 for shape in shapes)
    if not are_maps or shapes[0][3] != channels:
        rule = f"a network from the {channels} channels of `input_shape` to one feature map"
        advice = f"Its input and output shapes are {shapes}. `include_top=False` leaves a "
        raise error("backbone", rule, network.name, advice + "classifier out")
    for name, layer in leaf_layers(network).items():
        try:
            if isinstance(layer, keras.layers.Lambda):
                raise TypeError("write it as a layer class")
            layer.get_config()
        except Exception as reason:
            rule = "a network that can be saved and loaded"
            advice = f"The layer {name!r} ({type(layer).__name__}): {reason}"
            raise error("backbone", rule, network.name, advice) from reason


def last_layer_at(network: keras.Model, stride: int) -> str | None:
    """Returns the last layer at a stride that all later ones depend on, None if there is none."""
    try:
        return graph.find_feature_tap(network, stride)
    except ValueError:
        return None


def with_feature_taps(
    network: keras.Model, arguments: Mapping[str, Any], taps: Mapping[str, Any]
) -> keras.Model:
    """Returns the network at the model's output stride, if it has one, with more outputs.

    Args:
        network: The result of `build_backbone`. The result shares no weights with a user's network.
        arguments: The model's.
        taps: For each argument that names layers of the network its value: a name, several or None.
            The outputs of the result are the features, then those of these layers.
    """
    inputs, outputs = functional(network).inputs[0], list(functional(network).outputs)
    named = [("backbone", network.name)]
    for argument, value in taps.items():
        named += [(argument, name) for name in keras.tree.flatten(value) if name is not None]
    rule = f"the name of a layer of the backbone {network.name!r} whose output is a map"
    for argument, layer in named[1:]:
        try:
            outputs.append(graph.tensor_of(network, layer))
        except ValueError as reason:
            raise error(argument, rule, layer, str(reason)) from reason
    tapped = keras.Model(inputs, outputs, name=network.name)
    found = graph.geometry(tapped)
    for (argument, layer), tap in zip(named, found.outputs, strict=True):
        if None in tap.stride:
            raise error(argument, rule, layer, "Its output is not a feature map of the image")
    coarsest = max(found.outputs[0].stride)
    for argument, value in taps.items():
        if isinstance(value, tuple):
            strides = {max(found[graph.tensor_of(tapped, name)].stride) for name in value}
            if not value or len(strides) < len(value) or max(strides) >= coarsest:
                rule = f"layers of different strides, finer than the features' {coarsest}"
                raise error(argument, rule, value)
    own = max({stride for each in found.values() for stride in each.stride} - {None})
    output_stride = arguments.get("output_stride", own)
    is_own = not isinstance(arguments["backbone"], keras.Model)  # made for this model alone
    if is_own and output_stride == own:
        return keras.Model(inputs, outputs, name="backbone")
    options = {"own_batch_norms": True, "reuse_layers": is_own}
    size = arguments["input_shape"][:2]
    try:
        dense = graph.with_output_stride(tapped, output_stride, (None, None), **options)
    except ValueError:
        if is_own or size == (None, None):
            raise
        # A user's layers such as Reshape work at a fixed size alone.
        dense = graph.with_output_stride(tapped, output_stride, size, **options)
    backbone = keras.Model(dense.inputs[0], dense.outputs, name="backbone")
    if not is_own and not arguments["backbone"].trainable:
        backbone.trainable = False
    return backbone


def serialize_network(network: Any) -> Any:
    """Returns what stands for a network in a model's configuration: a name, None, or a dict.

    The network itself, kept as an attribute, would double the weights.
    """
    if not isinstance(network, keras.Model):
        return network
    config = keras.saving.serialize_keras_object(network)
    # A loss or metric of the user's has no part in this model and might not load again.
    config.pop("compile_config", None)
    # Without the object numbers that Keras adds while it loads a file: they are addresses in memory
    # and would join unrelated objects in a later process.
    return json.loads(
        json.dumps(config),
        object_hook=lambda part: {k: v for k, v in part.items() if k != "shared_object_id"},
    )


def deserialize_network(network: Any, custom_objects: Any) -> Any:
    """Returns the network of a configuration; names and networks are returned as they are."""
    if not isinstance(network, dict):
        return network
    # Keras empties the dict that it reads; the model needs it again.
    return keras.saving.deserialize_keras_object(copy.deepcopy(network), custom_objects)
