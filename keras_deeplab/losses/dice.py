"""Dice loss."""

from __future__ import annotations

import keras
import tensorflow as tf

from keras_deeplab.losses.label_map_loss import over_replicas
from keras_deeplab.losses.region_loss import RegionLoss, class_sums


@keras.saving.register_keras_serializable(package="keras_deeplab")
class Dice(RegionLoss):
    """Computes 1 minus the Dice coefficient of each class, and its mean over the classes.

    For probabilities `p` of a class and `g`, 1 at pixels of its label and else 0, the coefficient
    is `2 * sum(p * g) / (sum(p ** 2) + sum(g ** 2))`, over the pixels that count. A small class
    weighs as much as a large one. A batch in which every pixel is ignored gives 0 and zero
    gradients; labels out of range are as in `CrossEntropy`.

    Args:
        classes: `"present"` takes the mean over the classes that the labels hold, `"all"` over all.
        per_image: Whether each image has coefficients of its own; the loss is then the mean over
            the images that have a pixel that counts. By default they are of the whole batch.
        smooth: Added to numerator and denominator. Above 0, in pixels, it lets a class that the
            labels do not hold (`classes="all"`) ask for no predictions of it; with the paper's 0
            such a class has a loss of 1 whatever is predicted.
        ignore_label: Label of the pixels that do not count, or None where every pixel counts.
        stride: Takes every stride-th row and column of labels and logits only.
        name: Name of the loss.
        dtype: Accepted for Keras' sake; computations are always in float32.

    Call arguments:
        y_true: Integer labels `(batch, height, width)`, or `(batch, height, width, 1)`.
        y_pred: Logits `(batch, height, width, num_classes)`, float32, float16 or bfloat16.
        sample_weight: Weights per image or per pixel: by how much a pixel counts in all sums.

    Raises:
        ValueError: If an argument is out of its range, or the shapes do not fit.

    Example:

    >>> labels, logits = np.array([[[0, 1, 255]]]), np.zeros((1, 1, 3, 2), "float32")
    >>> float(Dice()(labels, logits))  # of each class 1 - 2 * 0.5 / (2 * 0.25 + 1)
    0.333...

    Reference:
        - [V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image Segmentation](
          https://arxiv.org/abs/1606.04797), section 3; with more classes than two, the mean.
    """

    def __init__(
        self,
        classes: str = "present",
        per_image: bool = False,
        smooth: float = 0.0,
        ignore_label: int | None = 255,
        stride: int = 1,
        name: str = "dice",
        dtype: str | None = None,
    ):
        super().__init__(classes, per_image, ignore_label, stride, name, dtype)
        if not 0 <= smooth < float("inf"):
            raise ValueError(f"smooth must be finite and at least 0; received {smooth}")
        self.smooth = float(smooth)

    def _class_losses(
        self, probabilities: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor, sizes: tf.Tensor
    ) -> tf.Tensor:
        own = tf.gather(probabilities, labels, batch_dims=3) * weights
        shared = self._grouped(class_sums(own, labels, probabilities.shape[-1]))
        squares = tf.reduce_sum(probabilities**2 * weights[..., None], 2)  # see `class_sums`
        squares = tf.reduce_sum(squares, 1)
        return 1 - tf.math.divide_no_nan(
            2 * shared + self.smooth, self._grouped(squares) + sizes + self.smooth
        )

    def _grouped(self, sums: tf.Tensor) -> tf.Tensor:
        return sums if self.per_image else over_replicas(super()._grouped(sums))

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "smooth": self.smooth}
