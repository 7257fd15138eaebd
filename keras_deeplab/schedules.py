"""Learning-rate schedules."""

from __future__ import annotations

import keras
import tensorflow as tf

from keras_deeplab import validation


@keras.saving.register_keras_serializable(package="keras_deeplab")
class PolynomialDecay(keras.optimizers.schedules.LearningRateSchedule):
    """The "poly" schedule: polynomial decay after an optional linear warm-up.

    From step 0 to `warmup_steps` the rate rises linearly from 0 to `initial_learning_rate`; from
    there to `total_steps` it is `end + (initial - end) * (1 - progress) ** power`, with `progress`
    from 0 to 1; after `total_steps` it is `end_learning_rate`.

    Args:
        initial_learning_rate: Highest rate, positive.
        total_steps: Number of optimizer steps, including the warm-up. Keras counts batches, also
            with `gradient_accumulation_steps`.
        power: Exponent of the decay, positive.
        warmup_steps: Number of warm-up steps, below `total_steps`.
        end_learning_rate: Rate from `total_steps` on.
        name: Name of the schedule.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    >>> schedule = PolynomialDecay(0.007, total_steps=30_000, warmup_steps=500)
    >>> optimizer = keras.optimizers.SGD(schedule, momentum=0.9)

    Reference:
        - [DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous Convolution,
          and Fully Connected CRFs](https://arxiv.org/abs/1606.00915), section 4.1: the "poly"
          policy with power 0.9.
    """

    def __init__(
        self,
        initial_learning_rate: float,
        total_steps: int,
        power: float = 0.9,
        warmup_steps: int = 0,
        end_learning_rate: float = 0.0,
        name: str = "polynomial_decay",
    ):
        super().__init__()
        rate = validation.positive("initial_learning_rate", initial_learning_rate)
        self.initial_learning_rate = rate
        self.total_steps = validation.integer("total_steps", total_steps)
        self.power = validation.positive("power", power)
        self.warmup_steps = validation.integer("warmup_steps", warmup_steps, minimum=0)
        self.end_learning_rate = validation.non_negative("end_learning_rate", end_learning_rate)
        self.name = name
        if warmup_steps >= total_steps:
            rule = f"below `total_steps={total_steps}`"
            raise validation.error("warmup_steps", rule, warmup_steps)

    def __call__(self, step: int | tf.Tensor) -> tf.Tensor:
        """Returns the learning rate of a step, counted from 0."""
        step = tf.cast(step, tf.float32)
        decay_steps = float(self.total_steps - self.warmup_steps)
        left = 1.0 - tf.clip_by_value((step - self.warmup_steps) / decay_steps, 0.0, 1.0)
        span = self.initial_learning_rate - self.end_learning_rate
        rate = self.end_learning_rate + span * left**self.power
        if self.warmup_steps == 0:
            return rate
        warmup = self.initial_learning_rate * step / self.warmup_steps
        return tf.where(step < self.warmup_steps, warmup, rate)

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        names = "initial_learning_rate total_steps power warmup_steps end_learning_rate name"
        return {name: getattr(self, name) for name in names.split()}
