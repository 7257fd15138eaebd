"""Losses that compare the predicted region of each class with the true one: Dice, Lovász."""

from __future__ import annotations

import abc
from typing import Any

import keras
import tensorflow as tf

from keras_deeplab import validation
from keras_deeplab.losses.base import LabelMapLoss, over_replicas


class RegionLoss(LabelMapLoss):
    """Base class: a loss of each class, over the batch or each image, and its mean over classes."""

    def __init__(
        self,
        classes: str = "present",
        per_image: bool = False,
        ignore_label: int | None = 255,
        stride: int = 1,
        name: str | None = None,
    ):
        super().__init__(ignore_label, stride, "mean", name)
        self.classes = validation.one_of("classes", classes, ("present", "all"))
        self.per_image = bool(per_image)

    def _parts(
        self, logits: tf.Tensor, classes: tf.Tensor, weights: tf.Tensor, sample_weight: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        weights *= sample_weight
        sizes = self._grouped(_class_sums(weights, classes, logits.shape[-1]))
        losses = self._class_losses(tf.nn.softmax(logits), classes, weights, sizes)
        # `!= 0` instead of `> 0`, so that the NaN of an invalid label reaches the mean.
        valid = tf.reduce_sum(sizes, -1, keepdims=True) != 0
        chosen = tf.cast(sizes != 0 if self.classes == "present" else valid, tf.float32)
        chosen *= tf.ones_like(losses)
        means = tf.math.divide_no_nan(tf.reduce_sum(losses * chosen, -1), tf.reduce_sum(chosen, -1))
        # The batch of a replica counts by its number of images.
        images = 1.0 if self.per_image else tf.cast(tf.shape(logits)[0], tf.float32)
        return means * images, tf.cast(valid, tf.float32) * images

    @abc.abstractmethod
    def _class_losses(
        self, probabilities: tf.Tensor, classes: tf.Tensor, weights: tf.Tensor, sizes: tf.Tensor
    ) -> tf.Tensor:
        """Returns losses `(images or 1, num_classes)`, as `sizes`, the weights of each class."""

    def _grouped(self, sums: tf.Tensor) -> tf.Tensor:
        """Sums `(batch, num_classes)` over the batch, unless each image has its own loss."""
        return sums if self.per_image else tf.reduce_sum(sums, 0, keepdims=True)

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        config = super().get_config()
        del config["reduction"]
        return {**config, "classes": self.classes, "per_image": self.per_image}


@keras.saving.register_keras_serializable(package="keras_deeplab")
class Dice(RegionLoss):
    """Computes 1 minus the Dice coefficient of each class, and its mean over the classes.

    For probabilities `p` of a class and `g`, 1 at pixels of its label and else 0, the coefficient
    is `2 * sum(p * g) / (sum(p ** 2) + sum(g ** 2))`, over the valid pixels. A small class weighs
    as much as a large one. Labels, errors and calls are as of `CrossEntropy`; a `sample_weight`
    multiplies a pixel in all sums.

    Args:
        classes: `"present"` averages over the classes that the labels contain, `"all"` over all.
        per_image: Whether the loss is the mean of the losses of the images with valid pixels, or
            that of the whole batch.
        smooth: Added to numerator and denominator. A positive value, in pixels, makes a class that
            the labels do not contain (`classes="all"`) penalise predictions of it; with the paper's
            0 the loss of such a class is always 1.
        **options: `ignore_label`, `stride` and `name`, as of `CrossEntropy`.

    Example:

    >>> labels, logits = np.array([[[0, 1, 255]]]), np.zeros((1, 1, 3, 2), "float32")
    >>> float(Dice()(labels, logits))  # of each class 1 - 2 * 0.5 / (2 * 0.25 + 1)
    0.333...

    Reference:
        - [V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image Segmentation](
          https://arxiv.org/abs/1606.04797), section 3; the mean over all classes.
    """

    def __init__(
        self,
        classes: str = "present",
        per_image: bool = False,
        smooth: float = 0.0,
        **options: Any,
    ):
        super().__init__(classes, per_image, **options)
        self.smooth = validation.non_negative("smooth", smooth)

    def _class_losses(
        self, probabilities: tf.Tensor, classes: tf.Tensor, weights: tf.Tensor, sizes: tf.Tensor
    ) -> tf.Tensor:
        own = tf.gather(probabilities, classes, batch_dims=3) * weights
        shared = self._grouped(_class_sums(own, classes, probabilities.shape[-1]))
        squares = tf.reduce_sum(probabilities**2 * weights[..., None], 2)  # see `_class_sums`
        squares = self._grouped(tf.reduce_sum(squares, 1))
        return 1 - tf.math.divide_no_nan(2 * shared + self.smooth, squares + sizes + self.smooth)

    def _grouped(self, sums: tf.Tensor) -> tf.Tensor:
        return sums if self.per_image else over_replicas(super()._grouped(sums))

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "smooth": self.smooth}


@keras.saving.register_keras_serializable(package="keras_deeplab")
class LovaszSoftmax(RegionLoss):
    """Computes the Lovász extension of 1 minus IoU of each class, and its mean over the classes.

    It equals 1 minus IoU at probabilities of 0 and 1, and is convex in the pixels' errors between.
    The authors fine-tune a network trained with cross-entropy, or add the two losses (`Sum`). It
    sorts the pixels once per class: a step on an image of 512 x 512 with 21 classes takes about a
    second on two CPU cores, a quarter of that with `stride=2`. Under a `tf.distribute` strategy the
    loss is the mean over the replicas, each with its own part of the batch.

    The arguments are those of `Dice`, but `smooth`. With `classes="all"` the loss of a class
    without labels is its largest probability.

    Example:

    >>> labels, logits = np.array([[[0, 1, 255]]]), np.zeros((1, 1, 3, 2), "float32")
    >>> float(LovaszSoftmax()(labels, logits))
    0.5

    Reference:
        - [The Lovász-Softmax loss: A tractable surrogate for the optimization of the
          intersection-over-union measure in neural networks](https://arxiv.org/abs/1705.08790),
          section 3 and algorithm 1.
    """

    def _class_losses(
        self, probabilities: tf.Tensor, classes: tf.Tensor, weights: tf.Tensor, sizes: tf.Tensor
    ) -> tf.Tensor:
        batch, height, width = tf.unstack(tf.shape(classes))
        groups, images = tf.shape(sizes)[0], 1 if self.per_image else batch
        pixels, num_classes = images * height * width, probabilities.shape[-1]
        flat = tf.reshape(probabilities, (groups, pixels, num_classes))
        probabilities = tf.transpose(flat, (0, 2, 1))
        own = tf.reshape(classes, (groups, 1, pixels)) == tf.range(num_classes)[:, None]
        weights = tf.reshape(weights, (groups, 1, pixels))
        errors = tf.where(own, 1 - probabilities, probabilities)
        # The gradient of the sorted values themselves fails for a replica without images.
        order = tf.math.top_k(tf.stop_gradient(errors), tf.shape(errors)[-1]).indices
        errors, own = (tf.gather(values, order, batch_dims=2) for values in (errors, own))
        weights = tf.gather(tf.broadcast_to(weights, tf.shape(order)), order, batch_dims=2)
        return tf.reduce_sum(errors * _slopes(own, tf.stop_gradient(weights)), -1)


def _slopes(own: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Computes by how much 1 minus IoU grows with each further wrong pixel: algorithm 1.

    `own` says which pixels have the class's label, by falling error along the last axis. In
    float64: the slopes of a million pixels are less than a float32 resolves.
    """
    weights = tf.cast(weights, tf.float64)
    inside = tf.cumsum(tf.where(own, weights, tf.zeros_like(weights)), -1)
    total = inside[..., -1:]
    union = total - inside + tf.cumsum(weights, -1)
    losses = tf.where(union == 0, tf.zeros_like(union), 1 - (total - inside) / union)
    before = tf.concat([tf.zeros_like(losses[..., :1]), losses[..., :-1]], -1)
    return tf.cast(losses - before, tf.float32)


def _class_sums(values: tf.Tensor, classes: tf.Tensor, num_classes: int) -> tf.Tensor:
    """Sums a map over the pixels of each class to `(batch, num_classes)`, without a map per class.

    In float64: a float32 sum of millions of values is wrong in the first digits.
    """
    batch = tf.shape(classes)[0]
    cells = tf.reshape(tf.range(batch), (batch, 1, 1)) * num_classes + classes
    values = tf.cast(tf.reshape(values, [-1]), tf.float64)
    sums = tf.math.unsorted_segment_sum(values, tf.reshape(cells, [-1]), batch * num_classes)
    return tf.cast(tf.reshape(sums, (batch, num_classes)), tf.float32)
