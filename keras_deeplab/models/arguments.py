"""What the arguments of models may be, and what their defaults mean on a backbone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import keras

from keras_deeplab import backbones, validation
from keras_deeplab.validation import error, integer, integers, is_integer

InputShape = tuple[int | None, int | None, int]
Check = Callable[[str, Any], Any]

# Options of a backbone that are arguments of the model itself.
MODEL_OPTIONS = ("multi_grid", "stride_on")
# What is known of a user's network, and of the network of 2015 in `UNet`.
_UNKNOWN = backbones.Backbone(builder=keras.Model, preprocessing=None)
_OF_2015 = backbones.Backbone(builder=keras.Model, preprocessing="tf")


def _optional(check: Check) -> Check:
    return lambda name, value: None if value is None else check(name, value)


def _num_classes(name: str, value: Any) -> int:
    # NumPy's integers too: `labels.max() + 1` is one.
    if not is_integer(value, 2):
        hint = "For one foreground class use 2: the background counts" if value == 1 else ""
        raise error(name, "an integer of at least 2", value, hint)
    return int(value)


def _input_shape(name: str, value: Any) -> InputShape:
    if value is None:
        return (None, None, 3)
    shape = tuple(value) if isinstance(value, list | tuple) else ()
    known = [side for side in shape if side is not None]
    if len(shape) != 3 or shape[2] is None or not all(map(is_integer, known)):
        rule = "(height, width, channels), positive integers, with None for any height or width"
        raise error(name, rule, value)
    return shape


def _dtype(name: str, value: Any) -> str:
    try:
        return keras.dtype_policies.get(value).name
    except ValueError as reason:
        rule = 'a dtype policy such as "float32" or "mixed_bfloat16"'
        raise error(name, rule, value) from reason


def _activation(name: str, value: Any) -> Any:
    if value == "softmax" or value is keras.activations.softmax:  # elsewhere that of the output
        rule = "an activation of hidden layers"
        raise error(name, rule, value, "The model returns logits; for probabilities see `predict`")
    try:
        serialized = keras.activations.serialize(keras.activations.get(value))
        keras.activations.get(serialized)  # as a saved model does
        return serialized
    except (ValueError, TypeError) as reason:
        raise error(name, "a Keras activation or a registered function", value) from reason


def _backbone_options(name: str, value: Any) -> dict[str, Any]:
    if value is not None and not isinstance(value, Mapping):
        raise error(name, "a dict of options", value)
    return dict(value or {})


def _layer_names(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise error(name, "a list of names of layers", value)
    return tuple(value)


# By the name of the argument. A model's backbone and graph check the others.
CHECKS: Mapping[str, Check] = {
    "num_classes": _num_classes,
    "input_shape": _input_shape,
    "dtype": _dtype,
    "backbone_options": _backbone_options,
    "output_stride": integer,
    "aspp_rates": _optional(integers),
    "aspp_filters": integer,
    "head_filters": _optional(integer),
    "dropout": partial(validation.fraction, below_one=True),
    "activation": _activation,
    "epsilon": validation.positive,
    "auxiliary_weight": validation.non_negative,
    "low_level_filters": integer,
    "decoder_filters": integer,
    "detail_filters": integer,
    "filters": _optional(integer),
    "depth": integer,
    "skip_layers": _optional(_layer_names),
    "levels": integers,
    "dense": integers,
    "pooling": partial(validation.one_of, choices=("max", "average")),
}


def completed(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces "auto" and None by what they mean on the backbone, and completes its options."""
    backbone, options = arguments["backbone"], dict(arguments["backbone_options"])
    known = _OF_2015 if backbone is None else _UNKNOWN
    if isinstance(backbone, str):
        known = backbones.get(backbone)
    own = [key for key in MODEL_OPTIONS if key in arguments]
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


def scaled_rates(rates: Sequence[int], old: int, new: int) -> tuple[int, ...]:
    """Scales atrous rates to another output stride, so that kernels cover the same pixels.

    Example:

    >>> keras_deeplab.models.arguments.scaled_rates((6, 12, 18), 16, 8)
    (12, 24, 36)
    """
    scaled = tuple(rate * old / new for rate in rates)
    if not all(rate.is_integer() for rate in scaled):
        rule = f"one to which the rates {tuple(rates)} of output stride {old} scale as integers"
        advice = f"They would be {scaled}. Give `aspp_rates` for this output stride"
        raise error("output_stride", rule, new, advice)
    return tuple(map(int, scaled))
