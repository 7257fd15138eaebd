"""What makes a Keras optimizer heed groups of variables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import keras
from keras import ops

from keras_deeplab.distribution import WholeGradientClipping
from keras_deeplab.optimizers.parameter_group import (
    ParameterGroup,
    checked_groups,
    multipliers,
)


class GroupedOptimizer(WholeGradientClipping):
    """Mixin in front of a Keras optimizer: multipliers of learning rate and weight decay.

    Weight decay is taken out of Keras' hands, which knows one for all variables, and done as the
    first part of each variable's own step. The subclass says how, in
    `_with_decay(gradient, variable, learning_rate, decay)`: it returns the gradient to step along,
    with the decay in it, or decays the variable itself.
    """

    # For each variable in its order: shape, multiplier of learning rate, of weight decay.
    _multipliers: list[tuple[list[int], float, float]] | None = None

    def __init__(self, *args: Any, groups: Sequence[ParameterGroup] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Past Keras' tracking, which looks for variables in whatever is set.
        object.__setattr__(self, "groups", checked_groups(groups))

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Finds the multipliers of each variable and makes the optimizer's own variables."""
        if not self.built:
            shapes = [list(variable.shape) for variable in variables]
            if self._multipliers is None or [shape for shape, *_ in self._multipliers] != shapes:
                pairs = multipliers(self.groups, variables)
                found = [(shape, *pair) for shape, pair in zip(shapes, pairs, strict=True)]
                object.__setattr__(self, "_multipliers", found)
        super().build(variables)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """One variable's step, weight decay included."""
        _, of_rate, of_decay = self._multipliers[self._get_variable_index(variable)]
        if of_rate == 0:
            return  # Not a step of length 0, to which a gradient that is not finite would be NaN.
        # Where nothing is multiplied, the step is Keras' own to the last bit: so is x * 1.
        learning_rate = ops.multiply(learning_rate, of_rate)
        decay = (self.weight_decay or 0.0) * of_decay
        if decay and self._use_weight_decay(variable):
            gradient = self._with_decay(gradient, variable, learning_rate, decay)
        super().update_step(gradient, variable, learning_rate)

    def _apply_weight_decay(self, variables: Any) -> None:
        """Nothing, as it is part of `update_step`."""

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments and, once built, the multipliers of each variable.

        The multipliers are kept by position, as Keras keeps an optimizer's variables: in a model
        that is read from a file some paths may be others. Keras numbers layers without a name anew,
        and a `Sequential` without `keras.Input` loses its prefix.
        """
        config = {
            **super().get_config(),
            "groups": [group.get_config() for group in self.groups],
        }
        if self._multipliers is not None:
            config["multipliers"] = [list(one) for one in self._multipliers]
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        """Makes the optimizer that `get_config` describes."""
        config = dict(config)
        config["groups"] = [ParameterGroup(**group) for group in config.get("groups", ())]
        known = config.pop("multipliers", None)
        optimizer = super().from_config(config, custom_objects)
        if known is not None:
            object.__setattr__(optimizer, "_multipliers", [tuple(one) for one in known])
        return optimizer
