"""Losses that compare a class's whole region with the predicted one."""

from __future__ import annotations

import abc

import tensorflow as tf

from keras_deeplab.losses.label_map_loss import LabelMapLoss

CLASSES = ("present", "all")


class RegionLoss(LabelMapLoss):
    """Base class: a loss per class, of the batch or of each image, and its mean over classes.

    A subclass says in `_class_losses` what a class's loss is; its mean over the batch is the only
    reduction, for there is no loss of a pixel. Under a `tf.distribute` strategy the batch is that
    of all replicas where a subclass adds up over them what it sums, else each replica's part.

    Args:
        classes: `"present"` or `"all"`: whose losses make the mean.
        per_image: Whether each image has a loss of its own.
        ignore_label: Label of the pixels that do not count, or None where every pixel counts.
        stride: Takes every stride-th row and column of labels and logits only.
        name: Name of the loss.
        dtype: Accepted for Keras' sake; computations are always in float32.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        classes: str,
        per_image: bool,
        ignore_label: int | None,
        stride: int,
        name: str,
        dtype: str | None,
    ):
        if classes not in CLASSES:
            raise ValueError(f"classes must be one of {CLASSES}; received {classes!r}")
        super().__init__(ignore_label, stride, "mean", name, dtype)
        self.classes = classes
        self.per_image = bool(per_image)

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """Returns the loss."""
        return self._loss(y_true, y_pred, None)

    def _loss(
        self, y_true: tf.Tensor, y_pred: tf.Tensor, sample_weight: tf.Tensor | None
    ) -> tf.Tensor:
        logits, labels, weights = self._read(y_true, y_pred)
        if sample_weight is not None:
            weights *= self._sample_weight(sample_weight, weights)
        sizes = self._grouped(class_sums(weights, labels, logits.shape[-1]))
        losses = self._class_losses(tf.nn.softmax(logits), labels, weights, sizes)
        # Unequal to 0 and not above it, so that the NaN of a wrong label is in the mean too.
        valid = tf.reduce_sum(sizes, -1, keepdims=True) != 0
        chosen = tf.cast(sizes != 0 if self.classes == "present" else valid, tf.float32)
        chosen *= tf.ones_like(losses)
        per_group = tf.math.divide_no_nan(
            tf.reduce_sum(losses * chosen, -1), tf.reduce_sum(chosen, -1)
        )
        valid = tf.cast(valid, tf.float32)
        images = tf.shape(logits)[0]
        if not self.per_image:  # a replica's only group counts as much as it has images
            per_group, valid = (x * tf.cast(images, tf.float32) for x in (per_group, valid))
        return self._mean(tf.reduce_sum(per_group), tf.reduce_sum(valid), images)

    @abc.abstractmethod
    def _class_losses(
        self, probabilities: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor, sizes: tf.Tensor
    ) -> tf.Tensor:
        """Returns the loss of each class, `(images, num_classes)` or `(1, num_classes)`.

        Args:
            probabilities: `(batch, height, width, num_classes)`.
            labels: Classes `(batch, height, width)`.
            weights: By how much each pixel counts, `(batch, height, width)`.
            sizes: Weight of each class's pixels, `(images or 1, num_classes)`.
        """

    def _grouped(self, sums: tf.Tensor) -> tf.Tensor:
        """Returns what was summed over images, `(batch, num_classes)`, as the loss takes them."""
        return sums if self.per_image else tf.reduce_sum(sums, 0, keepdims=True)

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        config = super().get_config()
        del config["reduction"]
        return {**config, "classes": self.classes, "per_image": self.per_image}


def class_sums(values: tf.Tensor, labels: tf.Tensor, num_classes: int) -> tf.Tensor:
    """Sums values over each class's pixels, image by image, without a map per class.

    Row by row first: a float32 to which millions of values are added one after another is wrong
    in the first digits.

    Args:
        values: `(batch, height, width)`, float32.
        labels: Classes `(batch, height, width)`, int32.
        num_classes: Number of classes.

    Returns:
        Sums `(batch, num_classes)`.
    """
    batch, height = tf.unstack(tf.shape(labels))[:2]
    rows = tf.reshape(tf.range(batch * height), (batch, height, 1))
    cells = tf.reshape(rows * num_classes + labels, [-1])
    sums = tf.math.unsorted_segment_sum(
        tf.reshape(values, [-1]), cells, batch * height * num_classes
    )
    return tf.reduce_sum(tf.reshape(sums, (batch, height, num_classes)), 1)
