"""From a model's arguments to the backbone inside it, and back."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import keras

from keras_deeplab import backbones, graph
from keras_deeplab.graph.network import functional, leaf_layers
from keras_deeplab.validation import error

# Options of a backbone that are arguments of the model itself.
_MODEL_OPTIONS = ("multi_grid", "stride_on")
# What is known of a user's network.
_UNKNOWN = backbones.Backbone(builder=keras.Model, preprocessing=None)


def completed(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces "auto" and None by what they mean on the backbone, and completes its options."""
    backbone, options = arguments["backbone"], dict(arguments["backbone_options"])
    known = backbones.find(backbone) if isinstance(backbone, str) else _UNKNOWN
    own = [key for key in _MODEL_OPTIONS if key in arguments]
    for key in own:
        if key in options:
            raise error("backbone_options", f"without {key!r}", options, f"`{key}` is an argument")
        options[key] = arguments[key]
    if "multi_grid" in own and options["multi_grid"] is None:
        options["multi_grid"] = known.multi_grid
    options = known.completed(getattr(backbone, "name", backbone), options)
    found = {**arguments, **{key: options.pop(key, None) for key in own}}
    found["backbone_options"] = options
    automatic = {
        "preprocessing": ("auto", known.preprocessing),
        "separable": (None, known.separable),
        "low_level_layer": (None, known.low_level_layer),
        "auxiliary_layer": ("auto", known.auxiliary_layer or "auto"),
    }
    for name, (value, meaning) in automatic.items():
        if name in found and found[name] == value:
            found[name] = meaning
    return found


def built(arguments: Mapping[str, Any]) -> keras.Model:
    """Returns the backbone at its own output stride: built by name, or the user's, checked."""
    backbone, channels = arguments["backbone"], arguments["input_shape"][2]
    if not isinstance(backbone, str):
        _check_network(backbone, channels)
        return backbone
    own = {key: arguments[key] for key in _MODEL_OPTIONS if key in arguments}
    options = {**arguments["backbone_options"], **own}
    return backbones.build(backbone, (None, None, channels), **options)


def last_layer_at(network: keras.Model, stride: int) -> str | None:
    """Returns the last layer at a stride that all later ones depend on, None if there is none."""
    try:
        return graph.find_feature_tap(network, stride)
    except ValueError:
        return None


def with_feature_taps(
    network: keras.Model,
    arguments: Mapping[str, Any],
    features: keras.KerasTensor | None = None,
    **layers: Any,
) -> tuple[keras.Model, dict[str, Any]]:
    """Returns the network at the model's output stride, and the arguments with the taps' names.

    Args:
        network: What `built` returned. The result shares no weights with a user's network.
        arguments: The model's. Without `output_stride` the network keeps its own.
        features: The network's output that the model uses; by default its only one.
        **layers: For each argument that names layers of the network its value: a name, several or
            None. The outputs of the result are the features, then those of these layers.
    """
    inputs, (output,) = functional(network).inputs[0], functional(network).outputs
    outputs, named = [output if features is None else features], [("backbone", network.name)]
    for argument, value in layers.items():
        for layer in keras.tree.flatten(value):
            if layer is not None:
                outputs.append(_output_of(network, argument, layer))
                named.append((argument, layer))
    tapped = keras.Model(inputs, outputs, name=network.name)
    found = graph.geometry(tapped)
    for (argument, layer), tap in zip(named, found.outputs, strict=True):
        if None in tap.stride:
            raise error(argument, _map_of(network), layer, "Its output is no map of the image")
    arguments = {**arguments, **layers}
    own = max({stride for each in found.values() for stride in each.stride} - {None})
    output_stride = arguments.get("output_stride", own)
    is_own = not isinstance(arguments["backbone"], keras.Model)  # made for this model alone
    if is_own and output_stride == own:
        return keras.Model(inputs, outputs, name="backbone"), arguments
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
    if not network.trainable:
        backbone.trainable = False
    return backbone, arguments


def _output_of(network: keras.Model, argument: str, layer: str) -> keras.KerasTensor:
    try:
        return graph.tensor_of(network, layer)
    except ValueError as reason:
        raise error(argument, _map_of(network), layer, str(reason)) from reason


def _map_of(network: keras.Model) -> str:
    return f"the name of a layer of the backbone {network.name!r} whose output is a map"


def _check_network(network: Any, channels: int) -> None:
    try:
        found = functional(network)
    except ValueError as reason:
        rule = f"one of {', '.join(map(repr, backbones.NAMES))} or a functional Keras model"
        raise error("backbone", rule, network, str(reason)) from reason
    for end, tensors in (("input", found.inputs), ("output", found.outputs)):
        if len(tensors) != 1 or len(tensors[0].shape) != 4:
            shapes = [tuple(tensor.shape) for tensor in tensors]
            rule = f"a network with one {end} of shape (batch, height, width, channels)"
            advice = f"It has {shapes}. A classifier is built with `include_top=False`"
            raise error("backbone", rule, network.name, advice)
    if found.inputs[0].shape[-1] != channels:
        rule = f"a network for the {channels} channels of `input_shape`"
        advice = f"It takes {found.inputs[0].shape[-1]} channels"
        raise error("backbone", rule, network.name, advice)
    rule = "a network that can be saved and loaded"
    for name, layer in leaf_layers(network).items():
        if isinstance(layer, keras.layers.Lambda):
            advice = f"The layer {name!r} is a Lambda: write it as a layer class"
            raise error("backbone", rule, network.name, advice)
        try:
            layer.get_config()
        except Exception as reason:
            advice = f"The layer {name!r} ({type(layer).__name__}) has no working get_config: "
            raise error("backbone", rule, network.name, f"{advice}{reason}") from reason


def serialized(backbone: Any) -> Any:
    """Returns what stands for a backbone in a model's configuration: a name, None, or a dict.

    A network's own configuration: the network itself, kept as an attribute, would double the
    weights.
    """
    if not isinstance(backbone, keras.Model):
        return backbone
    config = keras.saving.serialize_keras_object(backbone)
    # A loss or metric of the user's has no part in this model and might not load again.
    config.pop("compile_config", None)
    return _without_addresses(config)


def _without_addresses(config: Any) -> Any:
    """The configuration without the object numbers that Keras adds while it loads a file.

    They are addresses in memory and would join unrelated objects in a later process.
    """
    if isinstance(config, dict):
        kept = {key: value for key, value in config.items() if key != "shared_object_id"}
        return {key: _without_addresses(value) for key, value in kept.items()}
    if isinstance(config, list | tuple):
        return type(config)(map(_without_addresses, config))
    return config


def deserialized(backbone: Any, custom_objects: Any = None) -> Any:
    """Returns the network of a configuration; names and networks are returned as they are."""
    if not isinstance(backbone, dict):
        return backbone
    # Keras empties the dict that it reads; the model needs it again.
    return keras.saving.deserialize_keras_object(copy.deepcopy(backbone), custom_objects)
