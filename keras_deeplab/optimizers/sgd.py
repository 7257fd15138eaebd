"""Gradient descent as the papers have it."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_deeplab.optimizers.grouped import GroupedOptimizer


@keras.saving.register_keras_serializable(package="keras_deeplab")
class SGD(GroupedOptimizer, keras.optimizers.SGD):
    """Gradient descent with momentum, with the papers' weight decay and with groups of variables.

    For a variable `w` with gradient `g` and the multipliers of its groups:

    ```python
    rate = learning_rate * multiplier_of_learning_rate
    g = g + weight_decay * multiplier_of_weight_decay * w
    velocity = momentum * velocity - rate * g
    w = w + velocity
    ```

    `weight_decay` is what Caffe and TensorFlow-Slim, which DeepLab was trained with, mean by it:
    the gradient of `weight_decay / 2 * sum(w ** 2)`, which goes through the momentum with the rest.
    `keras.optimizers.SGD(weight_decay=...)` means something else: it takes `rate * weight_decay *
    w` off the variable beside the momentum, which is about `1 / (1 - momentum)` times weaker: ten
    times for a momentum of 0.9. The papers' 5e-4 given to Keras acts like 5e-5.

    As in Caffe, gradients are clipped before the weight decay is added, and averaged first where
    they are accumulated.

    Args:
        *args: As those of `keras.optimizers.SGD`: `learning_rate` (a float, a schedule or a
            function), `momentum`, `nesterov`, `weight_decay`.
        groups: `ParameterGroup`s, of which `optimizers.classifier` and `optimizers.no_decay` make
            some. A variable's multipliers are the products over all groups that it is in.
        **kwargs: As those of `keras.optimizers.SGD`.

    Raises:
        ValueError: If an argument is out of its range; when it is built, if a group matches no
            variable.

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
