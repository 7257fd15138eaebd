"""From a model's arguments to its backbone, and the image at both ends of a model."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import keras

from keras_deeplab import backbones, graph
from keras_deeplab.graph.network import functional, leaf_layers
from keras_deeplab.layers import CropLike, PadToMinimum, ResizeLike
from keras_deeplab.models.arguments import InputShape
from keras_deeplab.validation import error

# Options of a backbone that are arguments of the model itself.
_MODEL_OPTIONS = ("multi_grid", "stride_on")
# What is known of a user's network.
_UNKNOWN = backbones.Backbone(builder=keras.Model, preprocessing=None)


def completed(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces "auto" and None by what they mean on the backbone, and completes its options.

    Args:
        arguments: A model's, checked.

    Returns:
        A completed copy.

    Raises:
        ValueError: If the backbone is unknown, or has no such option.
    """
    backbone = arguments["backbone"]
    known = backbones.find(backbone) if isinstance(backbone, str) else _UNKNOWN
    options = arguments["backbone_options"]
    own = {key: arguments[key] for key in _MODEL_OPTIONS if key in arguments}
    for key in own:
        if key in options:
            raise error("backbone_options", f"without {key!r}", options, f"`{key}` is an argument")
    given = {key: value for key, value in {**options, **own}.items() if value is not None}
    if known is _UNKNOWN:
        for key, value in given.items():
            name = repr(getattr(backbone, "name", backbone))
            raise error(key, f"left out: the backbone {name} is not one of the package", value)
    else:
        if "multi_grid" in own and known.multi_grid is not None:
            given.setdefault("multi_grid", known.multi_grid)
        given = backbones.completed_options(backbone, given)
    completed = {**arguments, **{key: given.pop(key, None) for key in own}}
    completed["backbone_options"] = given
    automatic = {
        "preprocessing": ("auto", known.preprocessing),
        "separable": (None, known.separable),
        "low_level_layer": (None, known.low_level_layer),
        "auxiliary_layer": ("auto", known.auxiliary_layer or "auto"),
    }
    for name, (value, meaning) in automatic.items():
        if name in completed and completed[name] == value:
            completed[name] = meaning
    return completed


def built(arguments: Mapping[str, Any]) -> keras.Model:
    """Returns the backbone at its own output stride: built by name, or the user's, checked.

    Raises:
        ValueError: If the user's is not a network from one image to one map of features, or holds a
            layer that could not be loaded again.
    """
    backbone, channels = arguments["backbone"], arguments["input_shape"][2]
    if not isinstance(backbone, str):
        _check_network(backbone, channels)
        return backbone
    own = {key: arguments[key] for key in _MODEL_OPTIONS if key in arguments}
    options = {**arguments["backbone_options"], **own}
    return backbones.build(backbone, (None, None, channels), **options)


def at_output_stride(
    network: keras.Model, outputs: Sequence[keras.KerasTensor], arguments: Mapping[str, Any]
) -> keras.Model:
    """Returns a network at the model's output stride, with some of its tensors as outputs.

    Args:
        network: What `built` returned. The result shares no weights with a user's network.
        outputs: Tensors of it.
        arguments: The model's. Without `output_stride` the network keeps its own.
    """
    inputs = functional(network).inputs[0]
    tapped = keras.Model(inputs, outputs, name=network.name)
    strides = {stride for found in graph.geometry(tapped).values() for stride in found.stride}
    own = max(strides - {None})
    output_stride = arguments.get("output_stride", own)
    named = isinstance(arguments["backbone"], str)  # then the network is made for this model alone
    if named and output_stride == own:
        return keras.Model(inputs, outputs, name="backbone")
    options = {"own_batch_norms": True, "reuse_layers": named}
    size = arguments["input_shape"][:2]
    try:
        dense = graph.with_output_stride(tapped, output_stride, (None, None), **options)
    except ValueError:
        if named or size == (None, None):
            raise
        # A user's layers such as Reshape work at a fixed size alone.
        dense = graph.with_output_stride(tapped, output_stride, size, **options)
    backbone = keras.Model(dense.inputs[0], dense.outputs, name="backbone")
    if not network.trainable:
        backbone.trainable = False
    return backbone


def feature_tap(network: keras.Model, argument: str, layer: Any) -> keras.KerasTensor:
    """Returns the map that a layer of the backbone gives.

    Args:
        network: The backbone.
        argument: Name of the argument that names the layer, for messages.
        layer: Name of the layer.

    Raises:
        ValueError: If there is no such layer, or its output is not a map.
    """
    rule = f"the name of a layer of the backbone {network.name!r} whose output is a map"
    if not isinstance(layer, str) or layer == "auto":
        raise error(argument, rule, layer)
    try:
        tensor = graph.tensor_of(network, layer)
    except ValueError as reason:
        raise error(argument, rule, layer, str(reason)) from reason
    if len(tensor.shape) != 4:
        raise error(argument, rule, layer, f"Its output has the shape {tuple(tensor.shape)}")
    return tensor


def last_layer_at(network: keras.Model, stride: int) -> str | None:
    """Returns the last layer at a stride that all later ones depend on, None if there is none."""
    try:
        return graph.find_feature_tap(network, stride)
    except ValueError:
        return None


def with_feature_taps(
    arguments: Mapping[str, Any], network: keras.Model, **layers: str | None
) -> tuple[keras.Model, dict[str, Any]]:
    """Returns the network at the model's output stride, and the arguments with the taps' names.

    Args:
        arguments: The model's.
        network: What `built` returned.
        **layers: A layer for each argument that names one, None for none. Their outputs follow the
            features.
    """
    taps = [feature_tap(network, *item) for item in layers.items() if item[1] is not None]
    outputs = [functional(network).outputs[0], *taps]
    return at_output_stride(network, outputs, arguments), {**arguments, **layers}


@dataclass(frozen=True)
class Image:
    """The image at both ends of a model.

    Attributes:
        inputs: The model's input.
        enlarged: The same, at least as large as the backbone needs.
    """

    inputs: keras.KerasTensor
    enlarged: keras.KerasTensor

    @classmethod
    def of(cls, shape: InputShape, backbone: keras.Model) -> Self:
        """An input of a shape, padded where it may be smaller than the backbone needs."""
        inputs = keras.Input(shape, name="images")
        minimum = graph.minimum_size(keras.Model(backbone.inputs[0], backbone.outputs[0]))
        if minimum == (1, 1) or shape[:2] == minimum:
            return cls(inputs, inputs)
        return cls(inputs, PadToMinimum(*minimum, name="pad_to_minimum")(inputs))

    def scaled(self, preprocessing: str | None) -> Any:
        """The enlarged image, its pixels scaled in one layer unless that is turned off."""
        if preprocessing is None:
            return self.enlarged
        return backbones.preprocess(self.enlarged, preprocessing)

    def upsampled(self, logits: Any, align_corners: bool = False, prefix: str = "") -> Any:
        """Logits at the size of the input, float32."""
        name = f"{prefix}upsample"
        resize = ResizeLike(align_corners=align_corners, name=name, dtype="float32")
        x = resize(logits, self.enlarged)
        if self.enlarged is self.inputs:
            return x
        return CropLike(name=f"{prefix}crop", dtype="float32")(x, self.inputs)


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
    for name, layer in leaf_layers(network).items():
        _check_layer(network, name, layer)


def _check_layer(network: keras.Model, name: str, layer: keras.layers.Layer) -> None:
    rule = "a network that can be saved and loaded"
    if isinstance(layer, keras.layers.Lambda):
        advice = f"The layer {name!r} is a Lambda: write it as a layer class"
        raise error("backbone", rule, network.name, advice)
    try:
        layer.get_config()
    except Exception as reason:
        kind = type(layer).__name__
        advice = f"The layer {name!r} ({kind}) has no working get_config: {reason}"
        raise error("backbone", rule, network.name, advice) from reason


def serialized(backbone: Any) -> Any:
    """Returns what stands for a backbone in a model's configuration.

    A network's own configuration: the network itself, kept as an attribute, would double the
    weights. Names are returned as they are.
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
    if isinstance(backbone, dict):
        # Keras empties the dict that it reads; the model needs it again.
        config = copy.deepcopy(backbone)
        return keras.saving.deserialize_keras_object(config, custom_objects=custom_objects)
    return backbone
