"""From a model's arguments to features, and from logits to the image's size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras

from keras_deeplab import graph
from keras_deeplab.backbones import OWN_PREPROCESSING, build, preprocess
from keras_deeplab.layers import CropLike, PadToMinimum, ResizeLike
from keras_deeplab.models.user_backbone import serialized_backbone

InputShape = tuple[int | None, int | None, int]

# The papers' rates at output stride 16.
_RATES, _RATES_STRIDE = (6, 12, 18), 16
# V3's multi-grid for the last stage of a ResNet, table 3.
_MULTI_GRID = (1, 2, 4)


@dataclass(frozen=True)
class Image:
    """The image at both ends of a model.

    Attributes:
        inputs: The model's input.
        enlarged: The same, at least as large as the backbone needs.
    """

    inputs: keras.KerasTensor
    enlarged: keras.KerasTensor

    def upsampled(self, logits: Any) -> Any:
        """Logits at the size of the input, float32."""
        x = ResizeLike(name="upsample", dtype="float32")(logits, self.enlarged)
        if self.enlarged is self.inputs:
            return x
        return CropLike(name="crop", dtype="float32")(x, self.inputs)


def completed(arguments: dict[str, Any]) -> dict[str, Any]:
    """Checks the arguments that the DeepLab models share, and fills in what is None."""
    done = dict(arguments)
    _check_num_classes(done["num_classes"])
    done["input_shape"] = _input_shape(done["input_shape"])
    done["dtype"] = keras.dtype_policies.get(done["dtype"]).name
    done["aspp_rates"] = _rates(done["aspp_rates"], done["output_stride"])
    backbone = done["backbone"]
    if isinstance(backbone, str) and backbone.startswith("resnet"):
        done["multi_grid"] = tuple(done["multi_grid"] or _MULTI_GRID)
        done["stride_on"] = done["stride_on"] or "3x3"
    return done


def image_features(
    arguments: dict[str, Any], *, decoder: bool = False
) -> tuple[Image, list[keras.KerasTensor]]:
    """Builds input, scaling and backbone.

    `arguments["backbone"]` is replaced by what stands for it in a configuration, and "auto"
    preprocessing by what it means.

    Args:
        arguments: Of the model, completed; changed in place.
        decoder: Whether low-level features are wanted too.

    Returns:
        The image, and [features] or [features, low-level features].
    """
    shape = arguments["input_shape"]
    given = arguments["backbone"]
    options = {key: arguments[key] for key in ("multi_grid", "stride_on")}
    if isinstance(given, str):
        network = build(given, (None, None, shape[2]), **options)
    else:
        _refuse_resnet_options(given, options)
        network = given
        arguments["backbone"] = serialized_backbone(given, channels=shape[2])
    if arguments["preprocessing"] == "auto":
        arguments["preprocessing"] = OWN_PREPROCESSING[given] if isinstance(given, str) else None
    if decoder and arguments["low_level_layer"] is None:
        arguments["low_level_layer"] = graph.find_tap(network, 4)
    backbone = _tapped(network, arguments["output_stride"], shape, arguments.get("low_level_layer"))
    image = _image(shape, backbone)
    x = image.enlarged
    if arguments["preprocessing"] is not None:
        x = preprocess(x, arguments["preprocessing"])
    return image, backbone(x)


def _tapped(
    network: keras.Model, output_stride: int, shape: InputShape, low_level_layer: str | None
) -> keras.Model:
    """The backbone at an output stride, with all tensors that are wanted as its outputs."""
    outputs = [network.output]
    if low_level_layer is not None:
        outputs.append(graph.tensor_of(network, low_level_layer))
    tapped = keras.Model(network.inputs, outputs, name=network.name)
    fine = graph.with_output_stride(tapped, output_stride, shape[:2])
    return keras.Model(fine.inputs, fine.outputs, name="backbone")


def _image(shape: InputShape, backbone: keras.Model) -> Image:
    inputs = keras.Input(shape, name="images")
    least = graph.minimum_size(keras.Model(backbone.inputs, backbone.outputs[0]))
    if least == (1, 1) or shape[:2] == least:
        return Image(inputs, inputs)
    return Image(inputs, PadToMinimum(*least, name="pad_to_minimum")(inputs))


def _check_num_classes(num_classes: int) -> None:
    if not isinstance(num_classes, int) or isinstance(num_classes, bool) or num_classes < 2:
        hint = " For one foreground class use 2: background and it." if num_classes == 1 else ""
        raise ValueError(
            f"`num_classes` must be an integer from 2, received {num_classes!r}.{hint}"
        )


def _input_shape(input_shape: InputShape | None) -> InputShape:
    shape = (None, None, 3) if input_shape is None else tuple(input_shape)
    valid = len(shape) == 3 and isinstance(shape[2], int) and shape[2] > 0
    if not valid or any(n is not None and (not isinstance(n, int) or n < 1) for n in shape[:2]):
        raise ValueError(
            "`input_shape` must be (height, width, channels) with positive integers, None for any "
            f"height or width, received {input_shape!r}."
        )
    return shape


def _rates(rates: tuple[int, ...] | None, output_stride: int) -> tuple[int, ...]:
    if not isinstance(output_stride, int) or isinstance(output_stride, bool) or output_stride < 1:
        raise ValueError(f"`output_stride` must be a positive integer, received {output_stride!r}.")
    if rates is not None:
        if any(not isinstance(rate, int) or rate < 1 for rate in rates):
            raise ValueError(f"`aspp_rates` must be positive integers, received {rates!r}.")
        return tuple(rates)
    return tuple(max(1, rate * _RATES_STRIDE // output_stride) for rate in _RATES)


def _refuse_resnet_options(backbone: Any, options: dict[str, Any]) -> None:
    for key, value in options.items():
        if value is not None:
            raise ValueError(
                f"`{key}` is for the ResNets of this package; the backbone is the network "
                f"'{getattr(backbone, 'name', backbone)}', received {value!r}."
            )
