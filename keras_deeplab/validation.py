"""Checks of arguments, made once, where a public function receives them.

All errors have Keras' form: `argument` must be RULE. Received: argument=VALUE.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real
from reprlib import Repr
from typing import Any

from keras_deeplab.names import suggestion

_SHORT = Repr()  # takes no arguments in Python 3.11
_SHORT.maxstring = _SHORT.maxother = 200
_SHORT.maxtuple = _SHORT.maxlist = 20


def error(name: str, rule: str, value: Any, advice: str = "") -> ValueError:
    """Returns the error of an argument; `advice` is a sentence on how to fix it."""
    advice = f". {advice.strip()}" if advice else ""
    return ValueError(f"`{name}` must be {rule}. Received: {name}={_SHORT.repr(value)}{advice}")


def is_integer(value: Any, minimum: int = 1) -> bool:
    """Whether a value is an integer (also of NumPy, but not a bool) of at least `minimum`."""
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= minimum


def is_number(value: Any) -> bool:
    """Whether a value is a finite real number, but not a bool."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float can hold
        return False


def integer(name: str, value: Any, minimum: int = 1) -> int:
    """Returns an integer argument that is at least `minimum`."""
    if not is_integer(value, minimum):
        rule = {0: "a non-negative integer", 1: "a positive integer"}.get(
            minimum, f"an integer of at least {minimum}"
        )
        raise error(name, rule, value)
    return int(value)


def boolean(name: str, value: Any) -> bool:
    """Returns an argument that is True or False; 1 and 0 are not."""
    if not isinstance(value, bool):
        raise error(name, "True or False", value)
    return value


def positive(name: str, value: Any) -> float:
    """Returns a number argument that is greater than 0."""
    if not is_number(value) or value <= 0:
        raise error(name, "a positive number", value)
    return float(value)


def non_negative(name: str, value: Any) -> float:
    """Returns a number argument that is at least 0."""
    if not is_number(value) or value < 0:
        raise error(name, "a non-negative number", value)
    return float(value)


def fraction(name: str, value: Any, below_one: bool = False) -> float:
    """Returns a number argument in [0, 1], or in [0, 1) with `below_one`."""
    if not is_number(value) or not 0 <= value <= 1 or (below_one and value == 1):
        raise error(name, f"a number in [0, 1{')' if below_one else ']'}", value)
    return float(value)


def one_of(name: str, value: Any, choices: Iterable[Any]) -> Any:
    """Returns an argument that is one of `choices`; the error suggests the closest."""
    choices = tuple(choices)
    if not any(value is choice or value == choice for choice in choices):
        known = [choice for choice in choices if isinstance(choice, str)]
        raise error(
            name, f"one of {', '.join(map(repr, choices))}", value, suggestion(value, known)
        )
    return value


def integers(name: str, value: Any, minimum: int = 1) -> tuple[int, ...]:
    """Returns a list or tuple of integers that are at least `minimum` as a tuple."""
    if not isinstance(value, list | tuple) or not all(is_integer(v, minimum) for v in value):
        rule = "positive integers" if minimum == 1 else f"integers of at least {minimum}"
        raise error(name, f"a list of {rule}", value)
    return tuple(map(int, value))


def pair(name: str, value: Any, odd: bool = False) -> tuple[int, int]:
    """Returns `(height, width)`, or one integer for both, of positive integers."""
    both = value if isinstance(value, list | tuple) else (value, value)
    if len(both) != 2 or not all(is_integer(n) and (n % 2 or not odd) for n in both):
        rule = "integer, or (height, width)"
        raise error(name, f"a positive {'odd ' * odd}{rule}", value)
    return (int(both[0]), int(both[1]))


def numbers(name: str, value: Any) -> tuple[float, ...]:
    """Returns a list or tuple of finite numbers as a tuple."""
    if not isinstance(value, list | tuple) or not all(map(is_number, value)):
        raise error(name, "a list of numbers", value)
    return tuple(map(float, value))


def strings(name: str, value: Any) -> tuple[str, ...]:
    """Returns a list or tuple of strings as a tuple."""
    if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
        raise error(name, "a list of strings", value)
    return tuple(value)


def value_range(name: str, value: Any) -> tuple[float, float]:
    """Returns the `(low, high)` of sample values that become 0 and 255."""
    low, high = interval(name, value)
    if low == high:
        raise error(name, "(low, high) with low < high", value)
    return (low, high)


def interval(
    name: str, value: Any, low: float = -math.inf, high: float = math.inf
) -> tuple[float, float]:
    """Returns a `(lowest, highest)` of numbers in low..high."""
    ends = value if isinstance(value, list | tuple) else ()
    if len(ends) != 2 or not all(map(is_number, ends)) or not low <= ends[0] <= ends[1] <= high:
        bounds = f"{low:g} <= " * (low > -math.inf), f" <= {high:g}" * (high < math.inf)
        raise error(name, f"(lowest, highest) with {'lowest <= highest'.join(bounds)}", value)
    return (float(ends[0]), float(ends[1]))
