"""Label maps as losses and metrics read them: which pixels count, and which class each one has."""

from __future__ import annotations

import tensorflow as tf


def read_labels(
    labels: tf.Tensor, num_classes: int, ignore_label: int | None, name: str = "labels"
) -> tuple[tf.Tensor, tf.Tensor]:
    """Splits a label map into classes and a weight per pixel.

    A label that is neither a class nor the ignored one is never counted as something else: it
    raises where TensorFlow can raise. A function compiled by XLA cannot; there the pixel's weight
    is NaN, so that whatever is computed from it is NaN too.

    Args:
        labels: Integer tensor of any shape, or a float tensor that holds integers.
        num_classes: Number of classes; valid labels are `0..num_classes - 1`.
        ignore_label: Label of the pixels that do not count, or None.
        name: What the error calls the labels.

    Returns:
        `(classes, weights)` of the labels' shape: `classes` int32 in `0..num_classes - 1` (0 where
        the pixel does not count), `weights` float32, 1 where the pixel counts and else 0.

    Raises:
        tf.errors.InvalidArgumentError: If a label is out of range (outside XLA).
    """
    labels = tf.cast(labels, tf.int32)
    known = (labels >= 0) & (labels < num_classes)
    ignored = tf.zeros_like(known) if ignore_label is None else labels == ignore_label
    wrong = ~(known | ignored)
    rule = f"{name} must be in 0..{num_classes - 1}"
    rule += "" if ignore_label is None else f" or the ignored label {ignore_label}"
    smallest = tf.reduce_min(tf.where(wrong, labels, tf.int32.max))
    largest = tf.reduce_max(tf.where(wrong, labels, tf.int32.min))
    count = tf.math.count_nonzero(wrong)
    check = tf.debugging.Assert(
        count == 0, [f"{rule}; pixels with another label:", count, "from", smallest, "to", largest]
    )
    with tf.control_dependencies([] if check is None else [check]):
        counts = tf.cast(known & ~ignored, tf.float32)
    weights = tf.where(wrong, tf.constant(float("nan")), counts)
    return tf.where(known & ~ignored, labels, 0), weights


def fit_labels(labels: tf.Tensor, shape: tf.TensorShape) -> tf.Tensor:
    """Drops a trailing axis of 1 from labels and holds them to the shape of the predicted pixels.

    Args:
        labels: Labels `(batch, height, width)` or `(batch, height, width, 1)`.
        shape: Static shape `(batch, height, width)` of the pixels that the model answers for.

    Returns:
        The labels, `(batch, height, width)`.

    Raises:
        ValueError: If the labels do not have that shape.
    """
    fitted = tf.convert_to_tensor(labels)
    if fitted.shape.rank == shape.rank + 1 and fitted.shape[-1] == 1:
        fitted = tf.squeeze(fitted, -1)
    if not fitted.shape.is_compatible_with(shape):
        raise ValueError(
            "y_true must be a label map (batch, height, width) of the size of y_pred; received "
            f"y_true of shape {fitted.shape} for predicted pixels {shape}"
        )
    return fitted


def fit_sample_weight(sample_weight: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Brings weights per image or per pixel to the rank of a label map, in float32.

    Args:
        sample_weight: Weights `(batch,)`, `(batch, 1)`, `(batch, height, width)` or
            `(batch, height, width, 1)`.
        labels: Labels `(batch, height, width)`.

    Returns:
        The weights, `(batch, height, width)` or `(batch, 1, 1)`.

    Raises:
        ValueError: If the weights have another shape.
    """
    weights = tf.cast(tf.convert_to_tensor(sample_weight), tf.float32)
    shape, rank = weights.shape, labels.shape.rank
    if shape.rank == rank + 1 and shape[-1] == 1:
        weights = tf.squeeze(weights, -1)
    elif shape.rank == 1 or (shape.rank == 2 and shape[-1] == 1):
        weights = tf.reshape(weights, [-1] + [1] * (rank - 1))
    if weights.shape.rank != rank:
        raise ValueError(
            "sample_weight must be one weight per image, (batch,), or per pixel, (batch, height, "
            "width), and weights per class go to CrossEntropy(class_weights=...); received "
            f"sample_weight of shape {shape} for labels of shape {labels.shape}"
        )
    return weights
