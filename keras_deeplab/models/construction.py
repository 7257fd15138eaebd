"""From a model's completed arguments to features, and from logits to the image's size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras

from keras_deeplab import backbones, graph
from keras_deeplab.graph.network import functional
from keras_deeplab.layers import CropLike, PadToMinimum, ResizeLike
from keras_deeplab.models.arguments import InputShape, own_options
from keras_deeplab.models.user_backbone import serialized_backbone


@dataclass(frozen=True)
class Image:
    """The image at both ends of a model.

    Attributes:
        inputs: The model's input.
        enlarged: The same, at least as large as the backbone needs.
    """

    inputs: keras.KerasTensor
    enlarged: keras.KerasTensor

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


def image_features(
    arguments: dict[str, Any], taps: tuple[str, ...] = ()
) -> tuple[Image, list[keras.KerasTensor]]:
    """Builds input, scaling and backbone.

    `arguments["backbone"]` is replaced by what stands for it in a configuration, and "auto" and
    None by what they mean.

    Args:
        arguments: Of the model, completed; changed in place.
        taps: Those of the arguments that name layers of the backbone whose outputs are wanted too,
            such as "low_level_layer"; an optional one that is None is left out.

    Returns:
        The image, and [features, one tensor for each tap].
    """
    shape = arguments["input_shape"]
    network = own_network(arguments)
    if "low_level_layer" in taps and arguments["low_level_layer"] is None:
        arguments["low_level_layer"] = graph.find_feature_tap(network, 4)
    if "detail_layer" in taps and arguments["detail_layer"] == "auto":
        arguments["detail_layer"] = _fine_layer(network)
    outputs = [functional(network).outputs[0]]
    outputs += [_tap(network, arguments, tap) for tap in taps if arguments[tap] is not None]
    backbone = _at_stride(network, outputs, arguments["output_stride"], shape)
    image = padded_image(shape, backbone)
    return image, backbone(image.scaled(arguments["preprocessing"]))


def _fine_layer(network: keras.Model) -> str | None:
    """The last layer at stride 2; None for a network whose first map is coarser already."""
    try:
        return graph.find_feature_tap(network, 2)
    except ValueError:
        return None


def own_network(arguments: dict[str, Any]) -> keras.Model:
    """The backbone at its own stride; what depends on it in the arguments is filled in."""
    given, channels = arguments["backbone"], arguments["input_shape"][2]
    if not isinstance(given, str):
        arguments["backbone"] = serialized_backbone(given, channels=channels)
        if arguments["preprocessing"] == "auto":
            arguments["preprocessing"] = None
        return given
    known = backbones.find(given)
    if arguments["preprocessing"] == "auto":
        arguments["preprocessing"] = known.preprocessing
    if arguments.get("low_level_layer", "") is None:
        arguments["low_level_layer"] = known.low_level_layer
    if arguments.get("auxiliary_layer") == "auto" and known.auxiliary_layer is not None:
        arguments["auxiliary_layer"] = known.auxiliary_layer
    options = {**arguments["backbone_options"], **own_options(arguments)}
    return backbones.build(given, (None, None, channels), **options)


def _at_stride(
    network: keras.Model,
    outputs: list[keras.KerasTensor],
    output_stride: int,
    shape: InputShape,
) -> keras.Model:
    """A copy of the backbone at an output stride, for images of this shape or less."""
    try:
        return atrous_copy(network, outputs, output_stride, shape[:2])
    except ValueError:
        if shape[:2] == (None, None):
            raise
        # A fixed size may be less than what the network needs; images are then padded to that.
        fine = atrous_copy(network, outputs, output_stride)
        least = graph.minimum_size(keras.Model(fine.inputs[0], fine.outputs[0]))
        enlarged = [n and max(n, m) for n, m in zip(shape[:2], least, strict=True)]
        return atrous_copy(network, outputs, output_stride, tuple(enlarged))


def atrous_copy(
    network: keras.Model,
    outputs: list[keras.KerasTensor],
    output_stride: int,
    size: tuple[int | None, int | None] = (None, None),
) -> keras.Model:
    """A copy of a network with its weights, at an output stride, with these tensors as outputs.

    Its batch norms are the package's.
    """
    tapped = keras.Model(functional(network).inputs[0], outputs, name=network.name)
    fine = graph.with_output_stride(tapped, output_stride, size, own_batch_norms=True)
    copy = keras.Model(fine.inputs[0], fine.outputs, name="backbone")
    if not network.trainable:
        copy.trainable = False
    return copy


def _tap(network: keras.Model, arguments: dict[str, Any], name: str) -> keras.KerasTensor:
    layer = arguments[name]
    if not isinstance(layer, str) or layer == "auto":
        own = ", which has none of its own" if layer == "auto" else ""
        raise ValueError(
            f"`{name}` must name a layer of the backbone '{network.name}'{own}, received {layer!r}."
        )
    try:
        tensor = graph.tensor_of(network, layer)
    except ValueError as error:
        raise ValueError(f"`{name}` is wrong. {error}") from error
    if len(tensor.shape) != 4:
        raise ValueError(
            f"`{name}` must give a map (batch, height, width, channels); '{layer}' gives "
            f"{tuple(tensor.shape)}."
        )
    return tensor


def padded_image(shape: InputShape, backbone: keras.Model) -> Image:
    """The image, padded where it may be smaller than the backbone needs."""
    inputs = keras.Input(shape, name="images")
    least = graph.minimum_size(keras.Model(backbone.inputs[0], backbone.outputs[0]))
    if least == (1, 1) or shape[:2] == least:
        return Image(inputs, inputs)
    return Image(inputs, PadToMinimum(*least, name="pad_to_minimum")(inputs))
