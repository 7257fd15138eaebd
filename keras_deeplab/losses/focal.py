"""Focal loss."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from keras_deeplab.losses.pixel_loss import PixelLoss

SMALLEST = 1e-12  # below it a power under 1 has a slope that times 0 is NaN


@keras.saving.register_keras_serializable(package="keras_deeplab")
class Focal(PixelLoss):
    """Computes the cross-entropy times a power of what the label's probability lacks to 1.

    A pixel whose label has the probability `p` has the loss `-(1 - p) ** gamma * log(p)`: pixels
    that are right already hardly count. Ignored pixels, the mean, `sample_weight` and labels out of
    range are as in `CrossEntropy`; with `gamma=0` it is that loss.

    Args:
        gamma: Exponent, at least 0.
        ignore_label: Label of the pixels that do not count, or None where every pixel counts.
        class_weights: One weight of at least 0 per class (the paper's alpha), or None for equal
            weights.
        stride: Takes every stride-th row and column of labels and logits only.
        reduction: `"mean"`, `"sum"`, or `"none"` for the loss map `(batch, height, width)`.
        name: Name of the loss.
        dtype: Accepted for Keras' sake; computations are always in float32.

    Call arguments:
        y_true: Integer labels `(batch, height, width)`, or `(batch, height, width, 1)`.
        y_pred: Logits `(batch, height, width, num_classes)`, float32, float16 or bfloat16.
        sample_weight: Weights per image or per pixel.

    Raises:
        ValueError: If an argument is out of its range, or the shapes do not fit.

    Example:

    >>> labels, logits = np.array([[[0, 255]]]), np.zeros((1, 1, 2, 2), "float32")
    >>> float(Focal(gamma=2)(labels, logits))  # a quarter of log(2)
    0.173...

    Reference:
        - [Focal Loss for Dense Object Detection](https://arxiv.org/abs/1708.02002), section 3.2,
          equation 5; over the softmax of all classes.
    """

    def __init__(
        self,
        gamma: float = 2.0,
        ignore_label: int | None = 255,
        class_weights: Sequence[float] | None = None,
        stride: int = 1,
        reduction: str | None = "mean",
        name: str = "focal",
        dtype: str | None = None,
    ):
        super().__init__(ignore_label, class_weights, stride, reduction, name, dtype)
        if not 0 <= gamma < float("inf"):
            raise ValueError(f"gamma must be finite and at least 0; received {gamma}")
        self.gamma = float(gamma)

    def _pixel_losses(self, logits: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=classes, logits=logits)
        missing = tf.maximum(-tf.math.expm1(-losses), SMALLEST)
        return missing**self.gamma * losses

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "gamma": self.gamma}
