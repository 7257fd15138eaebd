"""Label maps as losses and metrics read them: the class of each pixel, and the ignored pixels."""

from __future__ import annotations

import warnings
from numbers import Integral
from typing import Any

import numpy as np
import tensorflow as tf

from keras_deeplab import validation

# Ignored pixels, in whole label maps, from which a single class beside them is suspicious. Some
# crops of background with thin void borders have fewer.
_ENOUGH_IGNORED = 0.5
_SAMPLED_MAPS = 32
WEIGHT_CAP = 10.0  # of class weights from shares
_LABELS_RULE = "`y_true` must be a label map (batch, height, width) of the size of `y_pred`."
_WEIGHTS_RULE = (
    "`sample_weight` must be one weight per image, (batch,), or per pixel, (batch, height, width)."
)
_warned = False


def checked_ignore_label(ignore_label: Any) -> int | None:
    """Returns the ignored label as an int, or None; raises a ValueError for anything else."""
    if ignore_label is None:
        return None
    if not isinstance(ignore_label, Integral) or isinstance(ignore_label, bool):
        advice = (
            "Several ignored labels must become one in the label maps: "
            "`np.where(np.isin(labels, [254, 255]), 255, labels)`."
        )
        raise validation.error("ignore_label", "an integer or None", ignore_label, advice)
    return int(ignore_label)


def median_frequency_weights(where_present: np.ndarray) -> np.ndarray:
    """Returns the median of the classes' shares by each one's, with 0 for absent classes.

    The shares are those of the pixels of the label maps that contain the class (`class_shares`).
    """
    weights, present = np.zeros(len(where_present)), where_present > 0
    if present.any():
        weights[present] = np.median(where_present[present]) / where_present[present]
    return weights


def class_shares(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns each class' share of all pixels, and of those of the label maps that contain it.

    `counts` has the pixels of each class in each label map.
    """
    pixels = counts.sum(0)
    where_present = np.where(counts > 0, counts.sum(1, keepdims=True), 0).sum(0)
    return pixels / max(1, pixels.sum()), pixels / where_present.clip(min=1)


def _rule(name: str, num_classes: int, ignore_label: int | None, is_float: bool) -> str:
    rule = f"{name} must be {'whole numbers ' if is_float else ''}in 0..{num_classes - 1}"
    rule += "" if ignore_label is None else f" or the ignored label {ignore_label}"
    return rule + (" (a mask divided by 255 is not a label map)" if is_float else "")


def read_labels(
    labels: tf.Tensor, num_classes: int, ignore_label: int | None, name: str = "labels"
) -> tuple[tf.Tensor, tf.Tensor]:
    """Splits label maps of any shape into int32 classes and float32 weights, 0 where ignored.

    A label that is neither in `0..num_classes - 1` nor ignored, also a fraction, raises an
    InvalidArgumentError. A function compiled by XLA cannot raise; there the pixel's weight is NaN,
    and so is all that is computed from it.
    """
    labels = tf.convert_to_tensor(labels)
    is_float = labels.dtype.is_floating
    # Compared in their dtype: a cast to int32 turns 0.0039 and 2**32 into 0.
    if not is_float:
        wide = labels.dtype in (tf.int64, tf.uint32, tf.uint64)
        labels = tf.cast(labels, tf.int64 if wide else tf.int32)
    classes = tf.cast(labels, tf.int32)
    whole = tf.cast(classes, labels.dtype) == labels
    known = whole & (classes >= 0) & (classes < num_classes)
    ignored = tf.zeros_like(known) if ignore_label is None else whole & (classes == ignore_label)
    wrong = ~(known | ignored)
    least, most = (-np.inf, np.inf) if is_float else (labels.dtype.min, labels.dtype.max)
    smallest = tf.reduce_min(tf.where(wrong, labels, tf.constant(most, labels.dtype)))
    largest = tf.reduce_max(tf.where(wrong, labels, tf.constant(least, labels.dtype)))
    count = tf.math.count_nonzero(wrong)
    rule = _rule(name, num_classes, ignore_label, is_float)
    check = tf.debugging.Assert(
        count == 0, [f"{rule}; pixels with other labels:", count, "from", smallest, "to", largest]
    )
    with tf.control_dependencies([] if check is None else [check]):  # None in eager mode
        valid = tf.cast(known & ~ignored, tf.float32)
    weights = tf.where(wrong, tf.constant(float("nan")), valid)
    return tf.where(known & ~ignored, classes, 0), weights


def check_labels(
    labels: np.ndarray, num_classes: int, ignore_label: int | None, name: str = "labels"
) -> tuple[np.ndarray, np.ndarray]:
    """Returns int64 labels and whether each is ignored, or raises a ValueError."""
    labels = np.asarray(labels)
    with np.errstate(invalid="ignore"):  # NaN is not a whole number either
        classes = labels.astype(np.int64)
    whole = classes == labels
    ignored = np.full(labels.shape, False)
    if ignore_label is not None:
        ignored = whole & (classes == ignore_label)
    wrong = np.unique(labels[~(ignored | (whole & (classes >= 0) & (classes < num_classes)))])
    if wrong.size:
        is_float = bool(np.issubdtype(labels.dtype, np.floating))
        rule = _rule(name, num_classes, ignore_label, is_float)
        more = ", ..." * (wrong.size > 8)
        raise ValueError(f"{rule}. Received: [{', '.join(map(str, wrong[:8]))}{more}]")
    return classes, ignored


def warn_of_single_class(
    pixels: np.ndarray, ignored: float, maps: float, ignore_label: int | None
) -> None:
    """Warns, once in a process, about label maps of one class and ignored pixels.

    Masks of 0 and 255 are such label maps: 255 is ignored, and only class 0 is trained. Call it
    with the pixels of each class and the ignored pixels in many maps, which rarely have only one
    class otherwise.
    """
    global _warned
    total = float(pixels.sum()) + ignored
    few = ignored * maps < _ENOUGH_IGNORED * total
    if _warned or ignore_label is None or np.count_nonzero(pixels) != 1 or few:
        return
    _warned = True
    only = int(np.flatnonzero(pixels)[0])
    warnings.warn(
        f"{int(maps)} label maps contain no class but {only}; {100 * ignored / total:.3g} % of "
        f"their pixels have the ignored label {ignore_label}. If {ignore_label} is a class in "
        "these masks, such as the foreground in masks of 0 and 255, give it a class number: "
        f"`np.where(masks == {ignore_label}, 1, masks)`.",
        stacklevel=2,
    )


def warn_of_masks(
    labels: np.ndarray | tf.Tensor, num_classes: int, ignore_label: int | None
) -> None:
    """Calls `warn_of_single_class` for some of the label maps `(images, height, width[, 1])`."""
    if ignore_label is None or labels.ndim not in (3, 4):
        return
    maps = np.asarray(labels[:: max(1, len(labels) // _SAMPLED_MAPS)])
    ignored = maps == ignore_label
    counted = maps[~ignored & (maps >= 0) & (maps < num_classes)].astype(np.int64)
    pixels = np.bincount(counted, minlength=num_classes)
    warn_of_single_class(pixels, np.count_nonzero(ignored), len(maps), ignore_label)


def fit_labels(labels: tf.Tensor, predictions: tf.Tensor) -> tf.Tensor:
    """Returns labels `(batch, height, width)`, as predictions are, without a last axis of 1.

    Sizes that are known only when the graph runs raise an InvalidArgumentError. A function compiled
    by XLA cannot raise.
    """
    fitted, shape = tf.convert_to_tensor(labels), predictions.shape[:-1]
    if fitted.shape.rank is None:  # of `tf.py_function`
        fitted = tf.ensure_shape(tf.reshape(fitted, tf.shape(fitted)[: shape.rank]), shape)
    if fitted.shape.rank == shape.rank + 1 and fitted.shape[-1] == 1:
        fitted = tf.squeeze(fitted, -1)
    if not fitted.shape.is_compatible_with(shape):
        received = f"y_true of shape {fitted.shape} for predictions of shape {shape}"
        is_one_hot = fitted.shape.rank == shape.rank + 1
        advice = ". Give `tf.argmax(y_true, -1)` for one-hot labels" if is_one_hot else ""
        raise ValueError(f"{_LABELS_RULE} Received: {received}{advice}")
    if fitted.shape.is_fully_defined() and shape.is_fully_defined():
        return fitted
    sizes, wanted = tf.shape(fitted), tf.shape(predictions)[:-1]
    return _checked(fitted, tf.reduce_all(sizes == wanted), _LABELS_RULE, sizes)


def fit_sample_weight(sample_weight: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Returns weights per image or per pixel as float32 `(batch, height or 1, width or 1)`."""
    weights = tf.cast(tf.convert_to_tensor(sample_weight), tf.float32)
    given, rank = weights.shape, labels.shape.rank
    if given.rank is None:  # also of TensorFlow after calls with both forms
        form = tf.shape(weights)
        axes, ends_in_one = tf.size(form), tf.equal(tf.concat([[0], form], 0)[-1], 1)
        valid = (axes == 1) | (axes == rank) | (ends_in_one & ((axes == 2) | (axes == rank + 1)))
        weights = _checked(weights, valid, _WEIGHTS_RULE, form)
        weights = tf.reshape(weights, tf.concat([form, [1] * rank], 0)[:rank])
        weights = tf.ensure_shape(weights, [None] * rank)
    elif given.rank == rank + 1 and given[-1] == 1:
        weights = tf.squeeze(weights, -1)
    elif given.rank == 1 or (given.rank == 2 and given[-1] == 1):
        weights = tf.reshape(weights, [-1] + [1] * (rank - 1))
    sides = [None if axis and side == 1 else side for axis, side in enumerate(weights.shape)]
    if not labels.shape.is_compatible_with(sides):
        raise ValueError(
            f"{_WEIGHTS_RULE} Received: sample_weight of shape {given} for labels of shape "
            f"{labels.shape}. Pass weights per class to CrossEntropy(class_weights=...)."
        )
    if weights.shape.is_fully_defined() and labels.shape.is_fully_defined():
        return weights
    sizes, wanted = tf.shape(weights), tf.shape(labels)
    valid = (sizes == wanted) | ((sizes == 1) & (tf.range(rank) > 0))
    return _checked(weights, tf.reduce_all(valid), _WEIGHTS_RULE, sizes)


def _checked(values: tf.Tensor, valid: tf.Tensor, rule: str, received: tf.Tensor) -> tf.Tensor:
    """The same values, which raise an InvalidArgumentError if they are not valid."""
    check = tf.debugging.Assert(valid, [f"{rule} Received the shape", received])
    with tf.control_dependencies([] if check is None else [check]):  # None in eager mode
        return tf.identity(values)


def label_dtype(num_classes: int) -> tf.DType:
    """Returns the dtype of a predicted label map: uint8, or int32 above 255 classes."""
    return tf.uint8 if num_classes <= 255 else tf.int32
