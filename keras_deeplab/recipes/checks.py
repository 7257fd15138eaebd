"""Rules that the values of a recipe follow."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any


def is_number(value: Any) -> bool:
    """Tells whether a value is a finite number, and not a truth value."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def numbers(name: str, value: Any) -> tuple:
    """The value as a tuple, if it is a list of numbers."""
    if not isinstance(value, list | tuple) or not all(map(is_number, value)):
        raise ValueError(f"`{name}` must be a list of numbers, received {value!r}.")
    return tuple(value)


def follows(rule: str, value: Any) -> bool:
    """Tells whether a value is "above 0", "at least 0" or "an integer from 1"."""
    if not is_number(value):
        return False
    if rule == "an integer from 1":
        return isinstance(value, int) and value >= 1
    return value > 0 if rule == "above 0" else value >= 0
