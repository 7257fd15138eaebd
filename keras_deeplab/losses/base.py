"""What all losses on label maps share: reading, the mask of ignored pixels, the reduction."""

from __future__ import annotations

import abc

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
    """Base class: the sum of a loss's parts over the sum of their divisors, in float32.

    A subclass computes both in `_parts`. Parts are pixels, or images or whole batches.

    Args:
        ignore_label: Label of the ignored pixels, or None if every pixel counts.
        stride: Uses every stride-th row and column of labels and logits only.
        reduction: `"mean"`, `"sum"` or `"none"`.
        name: Name of the loss.
        dtype: Accepted for compatibility with Keras.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        ignore_label: int | None,
        stride: int,
        reduction: str | None,
        name: str,
        dtype: str | None,
    ):
        reduction = "none" if reduction is None else reduction
        validation.one_of("reduction", reduction, ("mean", "sum", "none"))
        super().__init__(name=name, reduction=reduction, dtype=dtype)
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
        with tf.name_scope(self.name):
            logits = tf.cast(tf.convert_to_tensor(y_pred), tf.float32)
            labels = fit_labels(y_true, logits.shape[:-1])
            num_classes = logits.shape[-1]
            if num_classes is None or num_classes < 2:
                rule = "logits of at least 2 classes along a last axis of known size"
                raise validation.error("y_pred", rule, tuple(logits.shape))
            classes, weights = read_labels(self._strided(labels), num_classes, self.ignore_label)
            if sample_weight is None:
                sample_weight = tf.ones([])
            else:
                sample_weight = tf.convert_to_tensor(sample_weight)
                if sample_weight.shape.rank in (3, 4):
                    sample_weight = self._strided(sample_weight)
                sample_weight = fit_sample_weight(sample_weight, classes)
            parts, divisors = self._parts(self._strided(logits), classes, weights, sample_weight)
            if self.reduction == "none":
                return parts
            if self.reduction == "sum":
                return tf.reduce_sum(parts)
            images = tf.shape(logits)[0]
            return _mean(tf.reduce_sum(parts), tf.reduce_sum(divisors), images)

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """Returns the loss of a batch."""
        return self(y_true, y_pred)

    @abc.abstractmethod
    def _parts(
        self, logits: tf.Tensor, classes: tf.Tensor, weights: tf.Tensor, sample_weight: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the parts of the loss and of its divisor.

        Args:
            logits: `(batch, height, width, num_classes)`.
            classes: Labels `(batch, height, width)`, int32, 0 where ignored.
            weights: 1 where a pixel counts, else 0, `(batch, height, width)`.
            sample_weight: Scalar 1, or weights that broadcast to `weights`.
        """

    def _strided(self, maps: tf.Tensor) -> tf.Tensor:
        return maps if self.stride == 1 else maps[:, :: self.stride, :: self.stride]

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "ignore_label": self.ignore_label,
            "stride": self.stride,
        }


def _mean(total: tf.Tensor, divisor: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
    """Returns `total / divisor`, where the divisor is that of all replicas of a strategy.

    `fit` adds up the gradients of the replicas' losses, so these are parts of the whole loss. The
    value that Keras shows is the mean of the replicas' losses times their number, weighted by their
    images, which is wrong if the last batch is not divisible. The value returned corrects for that;
    its gradient is that of the part.

    Args:
        total: Sum over the replica, scalar.
        divisor: Divisor of the replica, scalar without a gradient.
        images: Number of the replica's images, int32 scalar.
    """
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    if replicas == 1:
        return tf.math.divide_no_nan(total, divisor)
    images = tf.cast(images, tf.float32)
    divisor, all_images = tf.unstack(over_replicas(tf.stack([divisor, images])))
    part = tf.math.divide_no_nan(total, divisor)
    shown = part * tf.math.divide_no_nan(all_images, replicas * images)
    return part + tf.stop_gradient(shown - part)


def over_replicas(values: tf.Tensor) -> tf.Tensor:
    """Sums values over the replicas of a `tf.distribute` strategy; gradients are those of the sum.

    Outside a replica, where Keras calls a loss on symbolic tensors to build it, nothing is summed.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return values
    return context.all_reduce(tf.distribute.ReduceOp.SUM, values)
