"""What all losses on label maps share: reading, the mask of ignored pixels, the reduction."""

from __future__ import annotations

import abc
import re

import keras
import tensorflow as tf

from keras_deeplab import validation
from keras_deeplab.labels import (
    checked_ignore_label,
    fit_labels,
    fit_sample_weight,
    read_labels,
)


class LabelMapLoss(keras.losses.Loss, abc.ABC):
    """Base class: the sum of a loss's parts over the sum of their divisors, in float32."""

    def __init__(
        self,
        ignore_label: int | None = 255,
        stride: int = 1,
        reduction: str | None = "mean",
        name: str | None = None,
    ):
        validation.one_of("reduction", reduction, ("mean", "sum", "none", None))
        # Keras' own default name counts the losses of the process.
        name = name or re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(self).__name__).lower()
        super().__init__(name=name, reduction=reduction)
        self.ignore_label = checked_ignore_label(ignore_label)
        self.stride = validation.integer("stride", stride)

    # Keras' own method divides by the number of all pixels, and casts labels to floats.
    def __call__(
        self,
        y_true: tf.Tensor,
        y_pred: tf.Tensor,
        sample_weight: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Returns the loss of a batch."""
        logits = tf.cast(tf.convert_to_tensor(y_pred), tf.float32)
        if logits.shape.rank not in (None, 4):
            rule = "logits (batch, height, width, classes)"
            raise validation.error("y_pred", rule, tuple(logits.shape))
        labels = fit_labels(y_true, logits)
        num_classes = logits.shape[-1]
        if num_classes is None or num_classes < 2:
            rule = "logits of at least 2 classes along a last axis of known size"
            raise validation.error("y_pred", rule, tuple(logits.shape))
        classes, weights = read_labels(self._strided(labels), num_classes, self.ignore_label)
        given = tf.ones([])
        if sample_weight is not None:
            given = self._strided(fit_sample_weight(sample_weight, labels))
        # Infinite logits at ignored pixels would make the loss and its gradients NaN.
        logits = tf.math.multiply_no_nan(self._strided(logits), weights[..., None])
        parts, divisors = self._parts(logits, classes, weights, given)
        if self.reduction == "mean":
            images = tf.cast(tf.shape(logits)[0], tf.float32)
            return _mean(tf.reduce_sum(parts), tf.reduce_sum(divisors), images)
        return tf.reduce_sum(parts) if self.reduction == "sum" else parts

    @abc.abstractmethod
    def _parts(
        self, logits: tf.Tensor, classes: tf.Tensor, weights: tf.Tensor, sample_weight: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the loss of each pixel, image or batch, and the divisor of each.

        `classes` is 0 at ignored pixels, `weights` 1 where a pixel counts and else 0, and
        `sample_weight` broadcasts to them.
        """

    def _strided(self, maps: tf.Tensor) -> tf.Tensor:
        return maps if self.stride == 1 else maps[:, :: self.stride, :: self.stride]

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "ignore_label": self.ignore_label, "stride": self.stride}


def _mean(total: tf.Tensor, divisor: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
    """Returns `total / divisor`, where the divisor is that of all replicas of a strategy.

    `fit` adds up the gradients of the replicas' losses, so these are parts of the whole loss. The
    value that Keras shows is the mean of the replicas' losses times their number, weighted by their
    images, which is wrong if the last batch is not divisible. The value returned corrects for that;
    its gradient is that of the part.
    """
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    if replicas == 1:
        return tf.math.divide_no_nan(total, divisor)
    divisor, all_images = tf.unstack(over_replicas(tf.stack([divisor, images])))
    part = tf.math.divide_no_nan(total, divisor)
    shown = part * tf.math.divide_no_nan(all_images, replicas * images)
    return part + tf.stop_gradient(shown - part)


def over_replicas(values: tf.Tensor) -> tf.Tensor:
    """Sums values over the replicas of a strategy; gradients are those of the sum."""
    # There is no replica where Keras calls a loss on symbolic tensors to build it.
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return values
    return context.all_reduce(tf.distribute.ReduceOp.SUM, values)
