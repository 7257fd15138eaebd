"""Losses on label maps with pixels that do not count."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from keras_deeplab.labels import fit_labels, fit_sample_weight, read_labels

REDUCTIONS = ("mean", "sum", "none")


@keras.saving.register_keras_serializable(package="keras_deeplab")
class CrossEntropy(keras.losses.Loss):
    """Computes the cross-entropy between logits and a label map, leaving out ignored pixels.

    The mean is over the pixels that count, not over all pixels: with class weights it is
    `sum(weight * loss) / sum(weight)` over the batch's valid pixels, as in PyTorch. A
    `sample_weight` (of `fit`: per image, or per pixel) multiplies the losses and stays out of the
    divisor, as in Keras' own losses. A batch in which every pixel is ignored gives 0 and zero
    gradients. Everything is computed in float32, whatever the dtype of the logits. Under a
    `tf.distribute` strategy each replica takes its own mean and the means are averaged.

    A label that is neither a class nor the ignored one raises; in a function compiled by XLA,
    which cannot raise, it makes the loss NaN.

    Args:
        ignore_label: Label of the pixels that do not count, or None where every pixel counts.
        class_weights: One weight of at least 0 per class, or None for equal weights.
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
    """

    def __init__(
        self,
        ignore_label: int | None = 255,
        class_weights: Sequence[float] | None = None,
        stride: int = 1,
        reduction: str | None = "mean",
        name: str = "cross_entropy",
        dtype: str | None = None,
    ):
        reduction = "none" if reduction is None else reduction
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction must be one of {REDUCTIONS}; received {reduction!r}")
        if not isinstance(stride, int) or isinstance(stride, bool) or stride < 1:
            raise ValueError(f"stride must be an integer from 1; received {stride!r}")
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.ignore_label = ignore_label
        self.stride = stride
        self.class_weights = None if class_weights is None else [float(w) for w in class_weights]
        if self.class_weights is not None and not all(
            0 <= w < float("inf") for w in self.class_weights
        ):
            raise ValueError(
                f"class_weights must be finite and at least 0; received {self.class_weights}"
            )

    # Keras reduces what `call` returns by the number of all pixels and casts labels to floats;
    # here the divisor is the weight of the valid ones and labels stay integers.
    def __call__(
        self,
        y_true: tf.Tensor,
        y_pred: tf.Tensor,
        sample_weight: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Returns the reduced loss of a batch."""
        with tf.name_scope(self.name):
            losses, weights = self._weighted(y_true, y_pred)
            if sample_weight is not None:
                losses *= self._sample_weight(sample_weight, losses)
            if self.reduction == "none":
                return losses
            total = tf.reduce_sum(losses)
            if self.reduction == "sum":
                return total
            mean = tf.math.divide_no_nan(total, tf.reduce_sum(weights))
            # `fit` adds up the replicas' losses.
            return mean / tf.distribute.get_strategy().num_replicas_in_sync

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """Returns the loss of each pixel, class weights applied and 0 where ignored."""
        return self._weighted(y_true, y_pred)[0]

    def _weighted(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns loss times weight, and weight, of each pixel."""
        logits = tf.cast(tf.convert_to_tensor(y_pred), tf.float32)
        labels = fit_labels(y_true, logits.shape[:-1])
        if self.stride > 1:
            labels = labels[:, :: self.stride, :: self.stride]
            logits = logits[:, :: self.stride, :: self.stride]
        num_classes = self._num_classes(logits)
        classes, weights = read_labels(labels, num_classes, self.ignore_label)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=classes, logits=logits)
        if self.class_weights is not None:
            weights *= tf.gather(tf.constant(self.class_weights, tf.float32), classes)
        return losses * weights, weights

    def _sample_weight(self, sample_weight: tf.Tensor, losses: tf.Tensor) -> tf.Tensor:
        """Returns weights that fit the losses: one for each image, or those of the pixels taken."""
        sample_weight = tf.convert_to_tensor(sample_weight)
        if self.stride > 1 and sample_weight.shape.rank in (3, 4):
            sample_weight = sample_weight[:, :: self.stride, :: self.stride]
        return fit_sample_weight(sample_weight, losses)

    def _num_classes(self, logits: tf.Tensor) -> int:
        num_classes = logits.shape[-1]
        if num_classes is None or num_classes < 2:
            raise ValueError(
                "the last axis of y_pred must be known and hold one logit per class, at least 2; "
                f"received y_pred of shape {tuple(logits.shape)}"
            )
        if self.class_weights is not None and len(self.class_weights) != num_classes:
            raise ValueError(
                "class_weights must hold one weight per class; received "
                f"{len(self.class_weights)} weights for {num_classes} classes"
            )
        return num_classes

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "ignore_label": self.ignore_label,
            "class_weights": self.class_weights,
            "stride": self.stride,
        }
