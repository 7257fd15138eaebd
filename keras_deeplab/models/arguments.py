"""The arguments that the models share: checked, and completed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import keras

from keras_deeplab import backbones

InputShape = tuple[int | None, int | None, int]

# Options of a backbone that are arguments of the model itself.
MODEL_OPTIONS = ("multi_grid", "stride_on")


def completed(
    arguments: dict[str, Any], rates: tuple[int, ...] = (6, 12, 18), rates_at: int = 16
) -> dict[str, Any]:
    """Checks the arguments that the models share, and fills in what is None.

    Args:
        arguments: Of the model.
        rates: The paper's, which `aspp_rates` has by default.
        rates_at: The output stride that they are for.

    Returns:
        A completed copy.

    Raises:
        ValueError: If an argument is out of its range; the error names it.
    """
    done = dict(arguments)
    done["num_classes"] = _num_classes(done["num_classes"])
    done["input_shape"] = _input_shape(done["input_shape"])
    done["dtype"] = _dtype(done["dtype"])
    if "output_stride" in done:
        check_output_stride(done["output_stride"])
    if "aspp_rates" in done:
        if done["aspp_rates"] is None:
            done["aspp_rates"] = scaled_rates(rates, rates_at, done["output_stride"])
        done["aspp_rates"] = _checked_rates(done["aspp_rates"])
    for name, value in done.items():
        no_head = name == "head_filters" and value is None
        if name.endswith("_filters") and not no_head:
            check_filters(name, value)
    if "dropout" in done:
        _check_dropout(done["dropout"])
    if "epsilon" in done:
        _check_epsilon(done["epsilon"])
    _complete_backbone_options(done)
    return done


def _complete_backbone_options(arguments: dict[str, Any]) -> None:
    """Fills in the options of a backbone that is known by name; a user's network has none."""
    backbone = arguments["backbone"]
    if arguments.get("separable", "") is None:
        known = backbones.find(backbone).separable if isinstance(backbone, str) else False
        arguments["separable"] = known
    own = own_options(arguments)
    given = _checked_options(arguments["backbone_options"], own) | own
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


def _checked_options(options: Any, own: dict[str, Any]) -> dict[str, Any]:
    if options is not None and not isinstance(options, dict):
        raise ValueError(f"`backbone_options` must be a dict, received {options!r}.")
    for key in own.keys() & (options or {}):
        raise ValueError(
            f"`{key}` must be given as an argument of the model, not in `backbone_options`, "
            f"received {options!r}."
        )
    return options or {}


def own_options(arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of the model's arguments that are options of its backbone."""
    return {key: arguments[key] for key in MODEL_OPTIONS if key in arguments}


def check_output_stride(output_stride: int) -> None:
    """Refuses what is no stride at all; the backbone says which strides it has."""
    if not is_positive(output_stride):
        raise ValueError(f"`output_stride` must be a positive integer, received {output_stride!r}.")


def is_positive(number: Any) -> bool:
    """Tells whether it is an integer from 1; True is none."""
    return isinstance(number, int) and not isinstance(number, bool) and number > 0


def _num_classes(number: Any) -> int:
    # NumPy's integers too: `labels.max() + 1` is one.
    if not isinstance(number, Integral) or isinstance(number, bool) or number < 2:
        hint = " For one foreground class use 2: background and it." if number == 1 else ""
        raise ValueError(f"`num_classes` must be an integer from 2, received {number!r}.{hint}")
    return int(number)


def scaled_rates(rates: Sequence[int], old: int, new: int) -> tuple[int, ...]:
    """Rates at another output stride, which then look at the same pixels.

    Args:
        rates: At the output stride `old`.
        old: Output stride.
        new: Output stride.

    Returns:
        The rates times `old / new`.

    Raises:
        ValueError: If one of them would not be an integer.

    Example:

    >>> scaled_rates((6, 12, 18), 16, 8)
    (12, 24, 36)
    """
    scaled = [rate * old / new for rate in rates]
    if any(rate != int(rate) for rate in scaled):
        raise ValueError(
            f"`output_stride` {new} would turn the rates {tuple(rates)} of output stride {old} "
            f"into {tuple(scaled)}: rates must be integers. Give `aspp_rates` for this stride."
        )
    return tuple(int(rate) for rate in scaled)


def check_filters(name: str, filters: Any) -> None:
    """Refuses what is no number of channels."""
    if not is_positive(filters):
        raise ValueError(f"`{name}` must be a positive integer, received {filters!r}.")


def _check_dropout(dropout: Any) -> None:
    if not _is_number(dropout) or not 0 <= dropout < 1:
        raise ValueError(f"`dropout` must be a number in 0..1, below 1, received {dropout!r}.")


def _check_epsilon(epsilon: Any) -> None:
    # Keras takes 0 and less, and divides by the root of them where a channel is constant.
    if not _is_number(epsilon) or not 0 < epsilon < math.inf:
        raise ValueError(f"`epsilon` must be a positive, finite number, received {epsilon!r}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


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
    valid = len(shape) == 3 and is_positive(shape[2])
    if not valid or any(n is not None and not is_positive(n) for n in shape[:2]):
        raise ValueError(
            "`input_shape` must be (height, width, channels) with positive integers, None for any "
            f"height or width, received {input_shape!r}."
        )
    return shape


def _checked_rates(rates: tuple[int, ...]) -> tuple[int, ...]:
    if not isinstance(rates, list | tuple) or not all(map(is_positive, rates)):
        raise ValueError(f"`aspp_rates` must be positive integers, received {rates!r}.")
    return tuple(rates)
