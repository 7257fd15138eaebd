"""AdamW with groups of variables."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_deeplab.optimizers.grouped import GroupedOptimizer


@keras.saving.register_keras_serializable(package="keras_deeplab")
class AdamW(GroupedOptimizer, keras.optimizers.AdamW):
    """`keras.optimizers.AdamW` with groups of variables.

    For a variable `w` and the multipliers of its groups:

    ```python
    rate = learning_rate * multiplier_of_learning_rate
    w = w - rate * weight_decay * multiplier_of_weight_decay * w
    w = w - rate * step_of_adam
    ```

    So the weight decay is decoupled from the gradient, as in Keras, and goes with the learning rate
    of its group.

    Args:
        *args: As those of `keras.optimizers.AdamW`: `learning_rate` (a float, a schedule or a
            function), `weight_decay`, `beta_1`, `beta_2`, `epsilon`.
        groups: `ParameterGroup`s, of which `optimizers.classifier` and `optimizers.no_decay` make
            some. A variable's multipliers are the products over all groups that it is in.
        **kwargs: As those of `keras.optimizers.AdamW`.

    Raises:
        ValueError: If an argument is out of its range; when it is built, if a group matches no
            variable.

    Example:

    >>> from keras_deeplab import optimizers
    >>> model = keras_deeplab.DeepLabV3Plus(3, "mobilenet_v2")
    >>> slow = optimizers.ParameterGroup("aspp/*", learning_rate=0.5)
    >>> groups = [slow, *optimizers.no_decay(model)]
    >>> optimizer = optimizers.AdamW(6e-4, weight_decay=0.01, groups=groups)
    >>> model.compile(optimizer, keras_deeplab.losses.CrossEntropy())

    Reference:
        [Loshchilov and Hutter, 2019, Decoupled Weight Decay
        Regularization](https://arxiv.org/abs/1711.05101), algorithm 2.
    """

    def _with_decay(self, gradient: Any, variable: Any, learning_rate: Any, decay: float) -> Any:
        rate, decay = (ops.cast(x, variable.dtype) for x in (learning_rate, decay))
        # In Keras' order, so that it rounds as Keras does.
        self.assign_sub(variable, ops.multiply(ops.multiply(variable, decay), rate))
        return gradient
