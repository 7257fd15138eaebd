"""From a model's arguments to features, and from logits to the image's size."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any

import keras

from keras_deeplab import backbones, graph
from keras_deeplab.graph.network import functional
from keras_deeplab.layers import CropLike, PadToMinimum, ResizeLike
from keras_deeplab.models.user_backbone import serialized_backbone

InputShape = tuple[int | None, int | None, int]

# Options of a backbone that are arguments of the model itself.
MODEL_OPTIONS = ("multi_grid", "stride_on")


@dataclass(frozen=True)
class Image:
    """The image at both ends of a model.

    Attributes:
        inputs: The model's input.
        enlarged: The same, at least as large as the backbone needs.
    """

    inputs: keras.KerasTensor
    enlarged: keras.KerasTensor

    def upsampled(self, logits: Any, align_corners: bool = False) -> Any:
        """Logits at the size of the input, float32."""
        resize = ResizeLike(align_corners=align_corners, name="upsample", dtype="float32")
        x = resize(logits, self.enlarged)
        if self.enlarged is self.inputs:
            return x
        return CropLike(name="crop", dtype="float32")(x, self.inputs)


def completed(
    arguments: dict[str, Any], rates: tuple[int, ...] = (6, 12, 18), rates_at: int = 16
) -> dict[str, Any]:
    """Checks the arguments that the models share, and fills in what is None.

    Args:
        arguments: Of the model.
        rates: The paper's, which `aspp_rates` has by default.
        rates_at: The output stride that they are for.
    """
    done = dict(arguments)
    done["num_classes"] = _num_classes(done["num_classes"])
    done["input_shape"] = _input_shape(done["input_shape"])
    done["dtype"] = _dtype(done["dtype"])
    if "output_stride" in done:
        check_output_stride(done["output_stride"])
    if "aspp_rates" in done:
        if done["aspp_rates"] is None:
            scaled = [max(1, rate * rates_at // done["output_stride"]) for rate in rates]
            done["aspp_rates"] = tuple(scaled)
        done["aspp_rates"] = _checked_rates(done["aspp_rates"])
    for name, value in done.items():
        if name.endswith("_filters"):
            check_filters(name, value)
    _complete_backbone_options(done)
    return done


def _complete_backbone_options(arguments: dict[str, Any]) -> None:
    """Fills in the options of a backbone that is known by name; a user's network has none."""
    backbone = arguments["backbone"]
    own = {key: arguments[key] for key in MODEL_OPTIONS if key in arguments}
    given = {**(arguments["backbone_options"] or {}), **own}
    if not isinstance(backbone, str):
        for key, value in given.items():
            if value is not None:
                other = repr(getattr(backbone, "name", backbone))
                raise ValueError(
                    f"`{key}` is for the backbones of this package; the backbone is {other}, "
                    f"received {value!r}."
                )
        return
    if own.get("multi_grid", ()) is None:
        given["multi_grid"] = backbones.find(backbone).multi_grid
    options = backbones.completed_options(backbone, given)
    for key in own:
        arguments[key] = options.pop(key, None)
    arguments["backbone_options"] = options


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
    network = own_network(arguments)
    if decoder and arguments["low_level_layer"] is None:
        arguments["low_level_layer"] = graph.find_tap(network, 4)
    backbone = _tapped(network, arguments["output_stride"], shape, arguments.get("low_level_layer"))
    if not network.trainable:
        backbone.trainable = False
    image = padded_image(shape, backbone)
    x = image.enlarged
    if arguments["preprocessing"] is not None:
        x = backbones.preprocess(x, arguments["preprocessing"])
    return image, backbone(x)


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
    own = {key: arguments[key] for key in MODEL_OPTIONS if key in arguments}
    options = {**arguments["backbone_options"], **own}
    return backbones.build(given, (None, None, channels), **options)


def _tapped(
    network: keras.Model, output_stride: int, shape: InputShape, low_level_layer: str | None
) -> keras.Model:
    """The backbone at an output stride, with all tensors that are wanted as its outputs."""
    outputs = [functional(network).outputs[0]]
    if low_level_layer is not None:
        outputs.append(_tap(network, low_level_layer))
    tapped = keras.Model(functional(network).inputs[0], outputs, name=network.name)
    try:
        fine = graph.with_output_stride(tapped, output_stride, shape[:2])
    except ValueError:
        if shape[:2] == (None, None):
            raise
        # A fixed size may be less than what the network needs; images are then padded to that.
        fine = graph.with_output_stride(tapped, output_stride, (None, None))
        least = graph.minimum_size(keras.Model(fine.inputs[0], fine.outputs[0]))
        enlarged = [n and max(n, m) for n, m in zip(shape[:2], least, strict=True)]
        fine = graph.with_output_stride(tapped, output_stride, tuple(enlarged))
    return keras.Model(fine.inputs[0], fine.outputs, name="backbone")


def _tap(network: keras.Model, low_level_layer: str) -> keras.KerasTensor:
    try:
        tensor = graph.tensor_of(network, low_level_layer)
    except ValueError as error:
        raise ValueError(f"`low_level_layer` is wrong. {error}") from error
    if len(tensor.shape) != 4:
        raise ValueError(
            "`low_level_layer` must give a map (batch, height, width, channels); "
            f"'{low_level_layer}' gives {tuple(tensor.shape)}."
        )
    return tensor


def padded_image(shape: InputShape, backbone: keras.Model) -> Image:
    """The image, padded where it may be smaller than the backbone needs."""
    inputs = keras.Input(shape, name="images")
    least = graph.minimum_size(keras.Model(backbone.inputs[0], backbone.outputs[0]))
    if least == (1, 1) or shape[:2] == least:
        return Image(inputs, inputs)
    return Image(inputs, PadToMinimum(*least, name="pad_to_minimum")(inputs))


def check_output_stride(output_stride: int) -> None:
    """Refuses what is no stride at all; the backbone says which strides it has."""
    if not _is_positive(output_stride):
        raise ValueError(f"`output_stride` must be a positive integer, received {output_stride!r}.")


def _is_positive(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number > 0


def _num_classes(number: Any) -> int:
    # NumPy's integers too: `labels.max() + 1` is one.
    if not isinstance(number, Integral) or isinstance(number, bool) or number < 2:
        hint = " For one foreground class use 2: background and it." if number == 1 else ""
        raise ValueError(f"`num_classes` must be an integer from 2, received {number!r}.{hint}")
    return int(number)


def check_filters(name: str, filters: int | None) -> None:
    """Refuses what is no number of channels; no filters mean no head."""
    if filters is None and name == "head_filters":
        return
    if not _is_positive(filters):
        raise ValueError(f"`{name}` must be a positive integer, received {filters!r}.")


def _dtype(dtype: Any) -> str:
    try:
        return keras.dtype_policies.get(dtype).name
    except ValueError as error:
        raise ValueError(
            f'`dtype` must be a dtype policy such as "float32" or "mixed_bfloat16", received '
            f"{dtype!r}. {error}"
        ) from error


def _input_shape(input_shape: InputShape | None) -> InputShape:
    if input_shape is None:
        return (None, None, 3)
    shape = tuple(input_shape) if isinstance(input_shape, list | tuple) else ()
    valid = len(shape) == 3 and _is_positive(shape[2])
    if not valid or any(n is not None and not _is_positive(n) for n in shape[:2]):
        raise ValueError(
            "`input_shape` must be (height, width, channels) with positive integers, None for any "
            f"height or width, received {input_shape!r}."
        )
    return shape


def _checked_rates(rates: tuple[int, ...]) -> tuple[int, ...]:
    if not isinstance(rates, list | tuple) or not all(map(_is_positive, rates)):
        raise ValueError(f"`aspp_rates` must be positive integers, received {rates!r}.")
    return tuple(rates)
