"""Optimizers with parameter groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import keras
from keras import ops

from keras_deeplab import validation
from keras_deeplab.distribution import WholeGradientClipping
from keras_deeplab.optimizers.groups import ParameterGroup, multipliers


class GroupedOptimizer(WholeGradientClipping):
    """Mixin in front of a Keras optimizer that applies the multipliers of parameter groups."""

    # For each variable in its order: shape, multiplier of learning rate, of weight decay.
    _multipliers: list[list[Any]] | None = None

    def __init__(self, *args: Any, groups: Sequence[ParameterGroup] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(groups, list | tuple) or not all(
            isinstance(group, ParameterGroup) for group in groups
        ):
            raise validation.error("groups", "a list of ParameterGroup", groups)
        # Not by `self.groups = `, which Keras tracks.
        object.__setattr__(self, "groups", tuple(groups))

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Computes the multipliers of each variable and creates the optimizer's variables."""
        if not self.built:
            shapes = [list(variable.shape) for variable in variables]
            if self._multipliers is None or [shape for shape, *_ in self._multipliers] != shapes:
                pairs = multipliers(self.groups, variables)
                found = [[shape, *pair] for shape, pair in zip(shapes, pairs, strict=True)]
                object.__setattr__(self, "_multipliers", found)
        super().build(variables)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Updates one variable, weight decay included."""
        _, of_rate, of_decay = self._multipliers[self._get_variable_index(variable)]
        if of_rate == 0:
            return  # a step of length 0 along a non-finite gradient would be NaN
        # A multiplier of 1 leaves Keras' step bit-identical.
        learning_rate = ops.multiply(learning_rate, of_rate)
        decay = (self.weight_decay or 0.0) * of_decay
        if decay and self._use_weight_decay(variable):
            gradient = self._with_decay(gradient, variable, learning_rate, decay)
        super().update_step(gradient, variable, learning_rate)

    def _apply_weight_decay(self, variables: Any) -> None:
        """Does nothing, as `update_step` includes it."""

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments and, once built, the multipliers of each variable."""
        config = {**super().get_config(), "groups": [group.get_config() for group in self.groups]}
        # By position, as paths may differ in a loaded model: Keras renumbers layers without a
        # name, and a `Sequential` without `keras.Input` loses its prefix.
        if self._multipliers is not None:
            config["multipliers"] = self._multipliers
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        """Builds the optimizer that `get_config` describes."""
        config = dict(config)
        config["groups"] = [ParameterGroup(**group) for group in config.get("groups", ())]
        known = config.pop("multipliers", None)
        optimizer = super().from_config(config, custom_objects)
        object.__setattr__(optimizer, "_multipliers", known)
        return optimizer


@keras.saving.register_keras_serializable(package="keras_deeplab")
class SGD(GroupedOptimizer, keras.optimizers.SGD):
    """SGD with momentum, the papers' weight decay (L2 regularization) and parameter groups.

    For a variable `w` with gradient `g` and the multipliers of its groups:

    ```python
    rate = learning_rate * multiplier_of_learning_rate
    g = g + weight_decay * multiplier_of_weight_decay * w
    velocity = momentum * velocity - rate * g
    w = w + velocity
    ```

    `weight_decay` is that of Caffe and TensorFlow-Slim, which DeepLab was trained with: the
    gradient of `weight_decay / 2 * sum(w ** 2)` is added before the momentum, after clipping.
    `keras.optimizers.SGD(weight_decay=...)` is decoupled: it subtracts `rate * weight_decay * w`
    outside the momentum, which is about `1 / (1 - momentum)` times weaker: with a momentum of 0.9
    the papers' 5e-4 acts like 5e-5.

    Args:
        *args, **kwargs: As in `keras.optimizers.SGD`.
        groups: A list of `ParameterGroup`, such as those of `optimizers.classifier` and
            `optimizers.no_decay`.

    Raises:
        ValueError: If an argument is out of its range; in `build`, if a group matches no variable.

    Example:

    >>> from keras_deeplab import optimizers
    >>> model = keras_deeplab.DeepLabV2(3, "mobilenet_v2")
    >>> groups = [*optimizers.classifier(model), *optimizers.no_decay(model)]
    >>> optimizer = optimizers.SGD(2.5e-4, momentum=0.9, weight_decay=5e-4, groups=groups)
    >>> model.compile(optimizer, keras_deeplab.losses.CrossEntropy())

    Reference:
        [Chen et al., 2017, DeepLab](https://arxiv.org/abs/1606.00915), section 4.1.1: momentum 0.9,
        weight decay 5e-4, ten times the learning rate for the classifier.
    """

    def _with_decay(self, gradient: Any, variable: Any, _: Any, decay: float) -> Any:
        gradient = ops.cast(gradient, variable.dtype)
        return ops.add(gradient, ops.multiply(variable, ops.cast(decay, variable.dtype)))


@keras.saving.register_keras_serializable(package="keras_deeplab")
class AdamW(GroupedOptimizer, keras.optimizers.AdamW):
    """`keras.optimizers.AdamW` with parameter groups.

    For a variable `w` and the multipliers of its groups:

    ```python
    rate = learning_rate * multiplier_of_learning_rate
    w = w - rate * weight_decay * multiplier_of_weight_decay * w
    w = w - rate * step_of_adam
    ```

    The weight decay is decoupled, as in Keras, and scales with the learning rate of its group.

    Args:
        *args, **kwargs: As in `keras.optimizers.AdamW`.
        groups: As in `SGD`.

    Example:

    >>> from keras_deeplab import optimizers
    >>> model = keras_deeplab.DeepLabV3Plus(3, "mobilenet_v2")
    >>> slow = optimizers.ParameterGroup("aspp/*", lr_multiplier=0.5)
    >>> groups = [slow, *optimizers.no_decay(model)]
    >>> optimizer = optimizers.AdamW(6e-4, weight_decay=0.01, groups=groups)
    >>> model.compile(optimizer, keras_deeplab.losses.CrossEntropy())

    Reference:
        [Loshchilov and Hutter, 2019, Decoupled Weight Decay
        Regularization](https://arxiv.org/abs/1711.05101), algorithm 2.
    """

    def _with_decay(self, gradient: Any, variable: Any, learning_rate: Any, decay: float) -> Any:
        rate, decay = (ops.cast(x, variable.dtype) for x in (learning_rate, decay))
        # In Keras' order of operations, for the same rounding.
        self.assign_sub(variable, ops.multiply(ops.multiply(variable, decay), rate))
        return gradient
