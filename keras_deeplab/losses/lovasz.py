"""Lovász-Softmax loss."""

from __future__ import annotations

import keras
import tensorflow as tf

from keras_deeplab.losses.region_loss import RegionLoss


@keras.saving.register_keras_serializable(package="keras_deeplab")
class LovaszSoftmax(RegionLoss):
    """Computes the Lovász extension of 1 minus IoU of each class, and its mean over the classes.

    It is 1 minus IoU where the probabilities are 0 and 1, and convex in a pixel's errors between:
    what a gradient can do for the mean IoU. Its authors start from a network trained with
    cross-entropy, or add the two (`Sum`). A batch in which every pixel is ignored gives 0 and zero
    gradients; labels out of range are as in `CrossEntropy`. It sorts the pixels once per class and
    holds several maps of the size of the logits meanwhile: a step on an image of 512 x 512 with 21
    classes takes two CPU cores about a second, a quarter of it with `stride=2`. Under a
    `tf.distribute` strategy the whole batch is not sorted together: each replica's part of it is a
    batch of its own, and the loss the mean over these; with `per_image=True` that is the same.

    Args:
        classes: `"present"` takes the mean over the classes that the labels hold, `"all"` over all
            (a class without a label then has its largest probability as its loss).
        per_image: Whether each image has a loss of its own; the loss is then the mean over the
            images that have a pixel that counts. By default IoU is that of the whole batch.
        ignore_label: Label of the pixels that do not count, or None where every pixel counts.
        stride: Takes every stride-th row and column of labels and logits only.
        name: Name of the loss.
        dtype: Accepted for Keras' sake; computations are always in float32.

    Call arguments:
        y_true: Integer labels `(batch, height, width)`, or `(batch, height, width, 1)`.
        y_pred: Logits `(batch, height, width, num_classes)`, float32, float16 or bfloat16.
        sample_weight: Weights per image or per pixel: by how much a pixel counts in the areas.

    Raises:
        ValueError: If an argument is out of its range, or the shapes do not fit.

    Example:

    >>> labels, logits = np.array([[[0, 1, 255]]]), np.zeros((1, 1, 3, 2), "float32")
    >>> float(LovaszSoftmax()(labels, logits))
    0.5

    Reference:
        - [The Lovász-Softmax loss: A tractable surrogate for the optimization of the
          intersection-over-union measure in neural networks](https://arxiv.org/abs/1705.08790),
          section 3 and algorithm 1.
    """

    def __init__(
        self,
        classes: str = "present",
        per_image: bool = False,
        ignore_label: int | None = 255,
        stride: int = 1,
        name: str = "lovasz_softmax",
        dtype: str | None = None,
    ):
        super().__init__(classes, per_image, ignore_label, stride, name, dtype)

    def _class_losses(
        self, probabilities: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor, sizes: tf.Tensor
    ) -> tf.Tensor:
        batch, height, width = tf.unstack(tf.shape(labels))
        groups, images = tf.shape(sizes)[0], 1 if self.per_image else batch
        pixels, num_classes = images * height * width, probabilities.shape[-1]
        flat = tf.reshape(probabilities, (groups, pixels, num_classes))
        probabilities = tf.transpose(flat, (0, 2, 1))
        own = tf.reshape(labels, (groups, 1, pixels)) == tf.range(num_classes)[:, None]
        weights = tf.reshape(weights, (groups, 1, pixels))
        errors = tf.where(own, 1 - probabilities, probabilities)
        errors, order = tf.math.top_k(errors, tf.shape(errors)[-1])
        own = tf.gather(own, order, batch_dims=2)
        weights = tf.gather(tf.broadcast_to(weights, tf.shape(order)), order, batch_dims=2)
        return tf.reduce_sum(errors * slopes(own, tf.stop_gradient(weights)), -1)


def slopes(own: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Computes by how much 1 minus IoU grows with each pixel that is wrong too.

    Not as the difference of two neighbours, as in the paper's algorithm 1: among a million pixels
    they differ by less than a float32 resolves.

    Args:
        own: Whether a pixel has the class's label, by falling error, `(..., pixels)`.
        weights: By how much each counts, float32.

    Returns:
        The slopes, float32, of the same shape.
    """
    weights = tf.cast(weights, tf.float64)
    inside = tf.cumsum(tf.where(own, weights, 0), -1)
    outside = tf.cumsum(tf.where(own, tf.zeros_like(weights), weights), -1)
    left = inside[..., -1:] - inside  # the intersection
    union = inside[..., -1:] + outside
    before = union - weights
    # The first wrong pixel of a class that no label has takes 1 minus IoU from 0 to 1.
    first = tf.cast((before == 0) & (weights > 0), tf.float64)
    others = tf.math.divide_no_nan(weights * left, union * before) + first
    return tf.cast(tf.where(own, tf.math.divide_no_nan(weights, union), others), tf.float32)
