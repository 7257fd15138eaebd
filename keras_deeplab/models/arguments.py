"""Checks of the models' arguments, and the rule for atrous rates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import keras

from keras_deeplab.validation import (
    error,
    fraction,
    integer,
    integers,
    is_integer,
    non_negative,
    one_of,
    positive,
)

InputShape = tuple[int | None, int | None, int]
Check = Callable[[str, Any], Any]


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
    "dropout": partial(fraction, below_one=True),
    "activation": _activation,
    "epsilon": positive,
    "auxiliary_weight": non_negative,
    "low_level_filters": integer,
    "decoder_filters": integer,
    "detail_filters": integer,
    "filters": _optional(integer),
    "depth": integer,
    "skip_layers": _optional(_layer_names),
    "levels": integers,
    "dense": integers,
    "pooling": partial(one_of, choices=("max", "average")),
}


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
