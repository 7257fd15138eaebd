"""What every loss on label maps does before it computes anything."""

from __future__ import annotations

import abc

import keras
import tensorflow as tf

from keras_deeplab.labels import (
    checked_ignore_label,
    fit_labels,
    fit_sample_weight,
    read_labels,
)


class LabelMapLoss(keras.losses.Loss, abc.ABC):
    """Base class: reads labels and logits, in float32 whatever the dtype of the logits.

    Args:
        ignore_label: Label of the pixels that do not count, or None where every pixel counts.
        stride: Takes every stride-th row and column of labels and logits only.
        reduction: See the subclasses.
        name: Name of the loss.
        dtype: Accepted for Keras' sake; computations are always in float32.

    Raises:
        ValueError: If `stride` is no integer from 1, or `ignore_label` neither an integer nor None.
    """

    def __init__(
        self,
        ignore_label: int | None,
        stride: int,
        reduction: str,
        name: str,
        dtype: str | None,
    ):
        if not isinstance(stride, int) or isinstance(stride, bool) or stride < 1:
            raise ValueError(f"stride must be an integer from 1; received {stride!r}")
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.ignore_label = checked_ignore_label(ignore_label)
        self.stride = stride

    # Keras' own reduces what `call` returns by the number of all pixels and casts labels to floats;
    # here the divisor is what counts and labels stay integers.
    def __call__(
        self,
        y_true: tf.Tensor,
        y_pred: tf.Tensor,
        sample_weight: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Returns the loss of a batch."""
        with tf.name_scope(self.name):
            return self._loss(y_true, y_pred, sample_weight)

    @abc.abstractmethod
    def _loss(
        self, y_true: tf.Tensor, y_pred: tf.Tensor, sample_weight: tf.Tensor | None
    ) -> tf.Tensor:
        """Returns the loss of a batch, which `__call__` puts into a name scope."""

    def _read(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns logits, classes and weights (1 where a pixel counts, else 0) of a batch."""
        logits = tf.cast(tf.convert_to_tensor(y_pred), tf.float32)
        labels = fit_labels(y_true, logits.shape[:-1])
        num_classes = logits.shape[-1]
        if num_classes is None or num_classes < 2:
            raise ValueError(
                "the last axis of y_pred must be known and hold one logit per class, at least 2; "
                f"received y_pred of shape {tuple(logits.shape)}"
            )
        classes, weights = read_labels(self._strided(labels), num_classes, self.ignore_label)
        return self._strided(logits), classes, weights

    def _sample_weight(self, sample_weight: tf.Tensor, pixels: tf.Tensor) -> tf.Tensor:
        """Returns weights that fit the pixels taken: one for each image, or for each of them."""
        sample_weight = tf.convert_to_tensor(sample_weight)
        if sample_weight.shape.rank in (3, 4):
            sample_weight = self._strided(sample_weight)
        return fit_sample_weight(sample_weight, pixels)

    def _strided(self, maps: tf.Tensor) -> tf.Tensor:
        return maps if self.stride == 1 else maps[:, :: self.stride, :: self.stride]

    def _mean(self, total: tf.Tensor, divisor: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
        """Returns `total / divisor`; under a strategy a replica's part of what one process gets.

        `fit` adds up the gradients of the replicas' losses, so the divisor is that of all of them.
        The number it shows is another matter: Keras takes the mean of the replicas' losses times
        their number, weighted by their images, which is wrong where a last batch does not divide.
        So the value is such that this mean is right, too; the gradient stays that of the part.

        Args:
            total: Sum over the replica's pixels, images or classes, scalar.
            divisor: By what the sums of all replicas are to be divided, scalar, not trained.
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

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "ignore_label": self.ignore_label,
            "stride": self.stride,
        }


def over_replicas(values: tf.Tensor) -> tf.Tensor:
    """Adds up what the replicas of a `tf.distribute` strategy have; every replica gets the sum.

    The gradients are those of the sum. Outside of a replica there is nothing to add: Keras calls a
    loss there once, on tensors without values, to build its parts.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return values
    return context.all_reduce(tf.distribute.ReduceOp.SUM, values)
