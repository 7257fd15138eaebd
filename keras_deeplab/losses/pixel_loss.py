"""Losses that are a weighted mean over pixels."""

from __future__ import annotations

import abc
from collections.abc import Sequence

import tensorflow as tf

from keras_deeplab.losses.label_map_loss import LabelMapLoss

REDUCTIONS = ("mean", "sum", "none")


class PixelLoss(LabelMapLoss):
    """Base class: a loss per pixel, weighted by class, and its mean over what counts.

    A subclass says in `_pixel_losses` what a pixel's loss is.

    Args:
        ignore_label: Label of the pixels that do not count, or None where every pixel counts.
        class_weights: One weight of at least 0 per class, or None for equal weights.
        stride: Takes every stride-th row and column of labels and logits only.
        reduction: `"mean"`, `"sum"`, or `"none"` for the loss map.
        name: Name of the loss.
        dtype: Accepted for Keras' sake; computations are always in float32.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        ignore_label: int | None,
        class_weights: Sequence[float] | None,
        stride: int,
        reduction: str | None,
        name: str,
        dtype: str | None,
    ):
        reduction = "none" if reduction is None else reduction
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction must be one of {REDUCTIONS}; received {reduction!r}")
        super().__init__(ignore_label, stride, reduction, name, dtype)
        self.class_weights = None if class_weights is None else [float(w) for w in class_weights]
        if self.class_weights is not None and not all(
            0 <= w < float("inf") for w in self.class_weights
        ):
            raise ValueError(
                f"class_weights must be finite and at least 0; received {self.class_weights}"
            )

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """Returns the loss of each pixel, class weights applied and 0 where ignored."""
        return self._weighted(y_true, y_pred)[0]

    def _loss(
        self, y_true: tf.Tensor, y_pred: tf.Tensor, sample_weight: tf.Tensor | None
    ) -> tf.Tensor:
        losses, weights = self._weighted(y_true, y_pred)
        if sample_weight is not None:
            losses *= self._sample_weight(sample_weight, losses)
        if self.reduction == "none":
            return losses
        total = tf.reduce_sum(losses)
        if self.reduction == "sum":
            return total
        return self._mean(total, tf.reduce_sum(weights), tf.shape(losses)[0])

    def _weighted(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns loss times weight, and weight, of each pixel."""
        logits, classes, weights = self._read(y_true, y_pred)
        if self.class_weights is not None:
            if len(self.class_weights) != logits.shape[-1]:
                raise ValueError(
                    "class_weights must hold one weight per class; received "
                    f"{len(self.class_weights)} weights for {logits.shape[-1]} classes"
                )
            weights *= tf.gather(tf.constant(self.class_weights, tf.float32), classes)
        return self._pixel_losses(logits, classes) * weights, weights

    @abc.abstractmethod
    def _pixel_losses(self, logits: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        """Returns the loss of each pixel."""

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "class_weights": self.class_weights}
