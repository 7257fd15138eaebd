"""Cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from keras_deeplab.losses.pixel_loss import PixelLoss


@keras.saving.register_keras_serializable(package="keras_deeplab")
class CrossEntropy(PixelLoss):
    """Computes the cross-entropy between logits and a label map, leaving out ignored pixels.

    The mean is over the pixels that count, not over all pixels: with class weights it is
    `sum(weight * loss) / sum(weight)` over the batch's valid pixels, as in PyTorch. A
    `sample_weight` (of `fit`: per image, or per pixel) multiplies the losses and stays out of the
    divisor, as in Keras' own losses. A batch in which every pixel is ignored gives 0 and zero
    gradients. Everything is computed in float32, whatever the dtype of the logits. Under a
    `tf.distribute` strategy the mean is over the pixels of all replicas together, as in one process
    with the same batch.

    A label that is neither a class nor the ignored one raises; in a function compiled by XLA,
    which cannot raise, it makes the loss NaN.

    Args:
        ignore_label: Label of the pixels that do not count, or None where every pixel counts.
        class_weights: One weight of at least 0 per class, or None for equal weights;
            `losses.class_weights` finds them for a data set. A pixel has the weight of its label.
        label_smoothing: Share of the target, from 0 to below 1, that all classes get in equal
            parts; the label gets the rest.
        stride: Takes every stride-th row and column of labels and logits only. DeepLab V1 and V2
            take the loss on labels shrunk 8 times: with 8 it is theirs, to the last digit where
            sizes are multiples of 8 plus 1 and the model resizes with `align_corners`.
        reduction: `"mean"`, `"sum"`, or `"none"` for the loss map `(batch, height, width)`, which
            is 0 at ignored pixels.
        name: Name of the loss.
        dtype: Accepted for Keras' sake; computations are always in float32.

    Call arguments:
        y_true: Integer labels `(batch, height, width)`, or `(batch, height, width, 1)`.
        y_pred: Logits `(batch, height, width, num_classes)`, float32, float16 or bfloat16.
        sample_weight: Weights `(batch,)`, `(batch, 1)`, `(batch, height, width)` or
            `(batch, height, width, 1)`.

    Raises:
        ValueError: If an argument is out of its range, or the shapes do not fit.

    Example:

    >>> loss = CrossEntropy(class_weights=[1.0, 3.0])
    >>> labels = np.array([[[0, 1], [255, 255]]])
    >>> logits = np.zeros((1, 2, 2, 2), "float32")
    >>> float(loss(labels, logits))
    0.693...

    Reference:
        - [Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected CRFs](
          https://arxiv.org/abs/1412.7062): the sum of cross-entropies of all positions.
        - [Rethinking the Inception Architecture for Computer Vision](
          https://arxiv.org/abs/1512.00567), section 7: label smoothing.
    """

    def __init__(
        self,
        ignore_label: int | None = 255,
        class_weights: Sequence[float] | None = None,
        stride: int = 1,
        reduction: str | None = "mean",
        name: str = "cross_entropy",
        dtype: str | None = None,
        *,
        label_smoothing: float = 0.0,
    ):
        super().__init__(ignore_label, class_weights, stride, reduction, name, dtype)
        if not 0 <= label_smoothing < 1:
            raise ValueError(
                f"label_smoothing must be at least 0 and below 1; received {label_smoothing}"
            )
        self.label_smoothing = float(label_smoothing)

    def _pixel_losses(self, logits: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=classes, logits=logits)
        if self.label_smoothing == 0:
            return losses
        # The mean over all classes of their cross-entropies, without a target map per class.
        every_class = tf.reduce_logsumexp(logits, -1) - tf.reduce_mean(logits, -1)
        return losses + self.label_smoothing * (every_class - losses)

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "label_smoothing": self.label_smoothing}
