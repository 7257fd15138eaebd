"""What every loss on label maps does before it computes anything."""

from __future__ import annotations

import keras
import tensorflow as tf

from keras_deeplab.labels import fit_labels, fit_sample_weight, read_labels


class LabelMapLoss(keras.losses.Loss):
    """Base class: reads labels and logits, in float32 whatever the dtype of the logits.

    Args:
        ignore_label: Label of the pixels that do not count, or None where every pixel counts.
        stride: Takes every stride-th row and column of labels and logits only.
        reduction: See the subclasses.
        name: Name of the loss.
        dtype: Accepted for Keras' sake; computations are always in float32.

    Raises:
        ValueError: If `stride` is no integer from 1.
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
        self.ignore_label = ignore_label
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

    def _loss(
        self, y_true: tf.Tensor, y_pred: tf.Tensor, sample_weight: tf.Tensor | None
    ) -> tf.Tensor:
        raise NotImplementedError

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

    @staticmethod
    def _of_replica(mean: tf.Tensor) -> tf.Tensor:
        """Returns a replica's part of the loss: `fit` adds up the replicas' losses."""
        return mean / tf.distribute.get_strategy().num_replicas_in_sync

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "ignore_label": self.ignore_label,
            "stride": self.stride,
        }
