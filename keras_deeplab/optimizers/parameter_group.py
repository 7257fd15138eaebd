"""Multipliers of variables, by their paths."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import keras

# How many paths an error shows.
_SHOWN = 6


@dataclass(frozen=True)
class ParameterGroup:
    """What multiplies the learning rate and the weight decay of the variables of some paths.

    A variable may be in several groups: its multipliers are the products of theirs, whatever their
    order, and 1 where it is in none. So a group that says something of learning rates and one that
    says something of weight decay need not know of each other.

    Args:
        pattern: A path as in `[variable.path for variable in model.trainable_variables]`, say
            `"logits_0/kernel"`, or a tuple of several. As in the module `fnmatch`, `*` stands for
            any characters (also `/`), `?` for one and `[ab]` for one of those in the brackets;
            upper and lower case differ.
        learning_rate: Multiplies the optimizer's learning rate, from 0. At 0 the variable stays as
            it is.
        weight_decay: Multiplies the optimizer's weight decay, from 0.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    >>> slow = ParameterGroup("block*/kernel", learning_rate=0.1)
    >>> slow.matches("block3_conv1/kernel"), slow.matches("logits/kernel")
    (True, False)
    """

    pattern: str | tuple[str, ...]
    learning_rate: float = 1.0
    weight_decay: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.pattern, list):
            object.__setattr__(self, "pattern", tuple(self.pattern))
        if not self._patterns or not all(isinstance(p, str) and p for p in self._patterns):
            raise ValueError(
                "pattern must be a path with or without wildcards, or a tuple of some; received "
                f"{self.pattern!r}"
            )
        for name in ("learning_rate", "weight_decay"):
            object.__setattr__(self, name, checked_multiplier(name, getattr(self, name)))

    @property
    def _patterns(self) -> tuple[str, ...]:
        return self.pattern if isinstance(self.pattern, tuple) else (self.pattern,)

    def matches(self, path: str) -> bool:
        """Tells whether the variable of this path is in the group."""
        return any(fnmatchcase(path, pattern) for pattern in self._patterns)

    def get_config(self) -> dict[str, Any]:
        """The arguments, as JSON has them."""
        pattern = list(self.pattern) if isinstance(self.pattern, tuple) else self.pattern
        return {
            "pattern": pattern,
            "learning_rate": self.learning_rate,
            "weight_decay": self.weight_decay,
        }


def checked_multiplier(name: str, value: Any) -> float:
    """The value as a float, if it is a number that may multiply."""
    valid = isinstance(value, int | float) and not isinstance(value, bool)
    if not valid or not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a number from 0; received {value!r}")
    return float(value)


def checked_groups(groups: Sequence[ParameterGroup]) -> tuple[ParameterGroup, ...]:
    """The groups as a tuple."""
    valid = isinstance(groups, list | tuple)
    if not valid or not all(isinstance(group, ParameterGroup) for group in groups):
        raise ValueError(f"groups must be a list of ParameterGroup; received {groups!r}")
    return tuple(groups)


def multipliers(
    groups: Sequence[ParameterGroup], variables: Sequence[keras.Variable]
) -> list[tuple[float, float]]:
    """The multipliers of each variable's learning rate and weight decay.

    Raises:
        ValueError: If no variable is in a group, which is then most likely misspelt.
    """
    # A variable of a reader's own training loop may be TensorFlow's, which has a name alone.
    paths = [getattr(variable, "path", variable.name) for variable in variables]
    for group in groups:
        if not any(map(group.matches, paths)):
            like = difflib.get_close_matches(group._patterns[0], paths, _SHOWN, cutoff=0.0)
            raise ValueError(
                "groups must each match a variable that is trained (a frozen one is not); received "
                f"{_shortened(group)}, which matches none of the {len(paths)}. Their paths are like"
                f" {', '.join(map(repr, like))}"
            )
    found = []
    for path in paths:
        mine = [group for group in groups if group.matches(path)]
        rate = math.prod(group.learning_rate for group in mine)
        found.append((float(rate), float(math.prod(group.weight_decay for group in mine))))
    return found


def _shortened(group: ParameterGroup) -> str:
    """The group's patterns, of very many the first."""
    shown = group._patterns[:_SHOWN]
    more = len(group._patterns) - len(shown)
    return ", ".join(map(repr, shown)) + (f" and {more} more" if more else "")
