"""IoU, F1, precision and recall per class and more from one confusion matrix."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from keras_deeplab import validation
from keras_deeplab.labels import (
    checked_ignore_label,
    fit_labels,
    fit_sample_weight,
    read_labels,
    warn_of_single_class,
)

DEFAULT_NAME = "segmentation_metrics"


def scores(confusion: np.ndarray, class_names: Sequence[str] | None = None) -> dict:
    """Computes mean IoU, IoU per class and more from a confusion matrix.

    A class that is neither in the truth nor in the prediction has no IoU and F1 and is not in their
    means; one that is only in one of them has an IoU and F1 of 0 and is. A class that is never
    predicted has no precision, one that is not in the truth no recall. Undefined values are None,
    for JSON.

    Args:
        confusion: Pixel counts `(num_classes, num_classes)`; rows are the truth, columns the
            prediction.
        class_names: One name per class; the class numbers by default.

    Returns:
        A dict of `mean_iou`, `per_class` (a dict of class name to IoU), `pixel_accuracy`,
        `frequency_weighted_iou` (each class's IoU weighted by its share of the true pixels),
        `predicted_share` (a dict of class name to the share of the pixels predicted as it),
        `mean_f1`, and `f1` (Dice), `precision` and `recall` (dicts of class name to score).

    Raises:
        ValueError: If the matrix is not square, or the names are not one per class.

    Example:

    >>> result = scores(np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]]))
    >>> result["mean_iou"], result["per_class"]
    (0.775, {'0': 0.75, '1': 0.8, '2': None})
    >>> result["frequency_weighted_iou"], result["predicted_share"]
    (0.775, {'0': 0.375, '1': 0.625, '2': 0.0})
    >>> result["precision"], result["recall"]
    ({'0': 1.0, '1': 0.8, '2': None}, {'0': 0.75, '1': 1.0, '2': None})

    Reference:
        - [Fully Convolutional Networks for Semantic Segmentation](
          https://arxiv.org/abs/1411.4038), section 5: pixel accuracy, mean IU and frequency
          weighted IU.
    """
    confusion = np.asarray(confusion, np.float64)
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise validation.error("confusion", "a square matrix", confusion.shape)
    names = checked_names(confusion.shape[0], class_names)
    counts = tf.constant(confusion)
    hits, true, predicted = _pixels(counts)
    mean_f1, f1, _ = ious(2 * hits, true + predicted)
    tensors = score_tensors(counts) | {
        "mean_f1": mean_f1,
        "f1": f1,
        "precision": hits / predicted,
        "recall": hits / true,
    }
    values = {name: value.numpy() for name, value in tensors.items()}
    return {
        name: by_name(value, names) if value.ndim else number(value)
        for name, value in values.items()
    }


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts the pixels of each pair of true and predicted class, int64, without ignored pixels."""
    cells = np.ravel(truth).astype(np.int64) * num_classes + np.ravel(predicted)
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def score_tensors(confusion: tf.Tensor) -> dict[str, tf.Tensor]:
    """Returns the values of `scores` for the logs of a training, with NaN for undefined ones."""
    hits, true, predicted = _pixels(confusion)
    mean_iou, per_class, counted = ious(hits, true + predicted - hits)
    pixels = tf.reduce_sum(true)
    return {
        "mean_iou": mean_iou,
        "per_class": per_class,
        "pixel_accuracy": tf.reduce_sum(hits) / pixels,
        "frequency_weighted_iou": tf.reduce_sum(counted * true) / pixels,
        "predicted_share": predicted / pixels,
    }


def _pixels(confusion: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the right, the true and the predicted pixels of each class."""
    diagonal = tf.linalg.diag_part(confusion)
    return diagonal, tf.reduce_sum(confusion, 1), tf.reduce_sum(confusion, 0)


def ious(intersection: tf.Tensor, union: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the mean IoU, the IoUs with NaN for a class without a union, and those with 0."""
    # By the union, not the quotient: the NaN of an invalid label (see `read_labels`) must not pass
    # as an absent class.
    absent = union == 0
    per_class = intersection / union  # 0 / 0 is NaN
    counted = tf.where(absent, tf.zeros_like(union), per_class)
    present = tf.reduce_sum(tf.cast(~absent, union.dtype))
    return tf.reduce_sum(counted) / present, per_class, counted


def number(value: float) -> float | None:
    """Returns a float for JSON, None for NaN."""
    return None if np.isnan(value) else float(value)


def by_name(values: np.ndarray, names: Sequence[str]) -> dict[str, float | None]:
    """Returns a dict for JSON of class name to value."""
    return {name: number(value) for name, value in zip(names, values, strict=True)}


def checked_names(num_classes: int, class_names: Sequence[str] | None) -> list[str]:
    """Returns one different name per class, the class numbers by default, or raises."""
    names = [str(n) for n in (range(num_classes) if class_names is None else class_names)]
    if len(names) != num_classes or len(set(names)) != num_classes:
        raise validation.error("class_names", f"{num_classes} different names", names)
    return names


def key_of_class(name: str) -> str:
    """Returns a class's name as the logs show it: white space becomes `_`."""
    return re.sub(r"\s+", "_", name)


@keras.saving.register_keras_serializable(package="keras_deeplab")
class SegmentationMetrics(keras.metrics.Metric):
    """Computes scores in `fit` and `evaluate` from one streaming confusion matrix.

    The entries in the logs are `mean_iou`, `pixel_accuracy`, `frequency_weighted_iou` and, for each
    class, `iou_NAME` and `predicted_share_NAME` (white space in a name becomes `_`), with the
    prefix `val_` for validation data: `ModelCheckpoint("best.keras", "val_mean_iou", mode="max")`.
    An undefined IoU is NaN. Counts are exact up to 2^53 pixels. The second metric of a model needs
    a name of its own, which is then part of the prefix.

    The entries per class are not in the logs of a batch: TensorFlow optimises a step of 300 results
    for half a minute. Invalid labels are as in `losses.CrossEntropy`: an error, or NaN in XLA.

    Args:
        num_classes: Number of classes, at least 2.
        class_names: One name per class; the class numbers by default.
        ignore_label: Label of the ignored pixels, or None if every pixel counts.
        per_class: Whether IoU and predicted share of each class are reported.
        name: Name of the metric; unless it is the default, a prefix in the logs.
        dtype: Dtype of the results.

    Call arguments:
        y_true: Integer labels `(batch, height, width)`, or `(batch, height, width, 1)`.
        y_pred: Logits `(batch, height, width, num_classes)` in a float dtype, or predicted
            labels of the shape of `y_true` in an integer dtype.
        sample_weight: Optional weights `(batch,)` or `(batch, height, width)` of the pixels (in
            `compile`: under `weighted_metrics`).

    Raises:
        ValueError: If an argument is out of its range, or the shapes do not fit.

    Example:

    >>> model.compile("sgd", CrossEntropy(), metrics=[SegmentationMetrics(2, ["sky", "ground"])])
    >>> model.evaluate(dataset, return_dict=True)["iou_sky"]

    Reference:
        - [The PASCAL Visual Object Classes Challenge: A Retrospective](
          https://link.springer.com/article/10.1007/s11263-014-0733-5).
    """

    def __init__(
        self,
        num_classes: int,
        class_names: Sequence[str] | None = None,
        ignore_label: int | None = 255,
        per_class: bool = True,
        name: str = DEFAULT_NAME,
        dtype: str | None = None,
    ):
        super().__init__(name=name, dtype=dtype)
        self.num_classes = validation.integer("num_classes", num_classes, minimum=2)
        self.class_names = None if class_names is None else [str(n) for n in class_names]
        self.ignore_label = checked_ignore_label(ignore_label)
        if self.ignore_label == 255 < num_classes:
            warnings.warn(
                f"Class 255 of {num_classes} is not counted, as `ignore_label` is 255. Set it to "
                "None, or to another label.",
                stacklevel=2,
            )
        self.per_class = per_class
        names = checked_names(num_classes, self.class_names)
        self.class_keys = checked_names(num_classes, [key_of_class(name) for name in names])
        self.confusion = self.add_variable(
            (num_classes, num_classes), "zeros", dtype="float64", name="confusion"
        )
        # Ignored pixels and label maps, for `warn_of_single_class`.
        self._seen = self.add_variable((2,), "zeros", dtype="float64", name="seen")

    def update_state(
        self, y_true: tf.Tensor, y_pred: tf.Tensor, sample_weight: tf.Tensor | None = None
    ) -> None:
        """Adds a batch to the confusion matrix; logits that are NaN make the scores NaN."""
        predicted = tf.convert_to_tensor(y_pred)
        is_nan = tf.zeros([], tf.bool)
        if predicted.dtype.is_floating:
            if predicted.shape[-1] != self.num_classes:
                rule = f"{self.num_classes} logits along the last axis"
                raise validation.error("y_pred", rule, tuple(predicted.shape))
            is_nan = tf.reduce_any(tf.math.is_nan(predicted), -1)  # else they would be class 0
            predicted = tf.argmax(predicted, -1, output_type=tf.int32)
        elif predicted.shape.rank == 4 and predicted.shape[-1] == 1:
            predicted = tf.squeeze(predicted, -1)
        truth = fit_labels(y_true, predicted[..., None])
        rows, weights = read_labels(truth, self.num_classes, self.ignore_label)
        # Predictions at ignored pixels are not checked.
        predicted = tf.where(weights == 0, 0, tf.cast(predicted, tf.int32))
        columns, known = read_labels(predicted, self.num_classes, None, "predicted labels")
        weights = tf.cast(weights * known, tf.float64)
        if sample_weight is not None:
            weights *= tf.cast(fit_sample_weight(sample_weight, truth), tf.float64)
        else:
            ignored = tf.math.count_nonzero(weights == 0, dtype=tf.float64)
            self._seen.assign_add([ignored, tf.cast(tf.shape(truth)[0], tf.float64)])
        weights = tf.where(is_nan & (weights != 0), tf.constant(np.nan, tf.float64), weights)
        cells = tf.reshape(rows * self.num_classes + columns, [-1])
        # Not `bincount`: XLA cannot compile it, and GPUs count it in float32.
        counts = tf.math.unsorted_segment_sum(tf.reshape(weights, [-1]), cells, self.num_classes**2)
        self.confusion.assign_add(tf.reshape(counts, (self.num_classes, self.num_classes)))

    @property
    def prefix(self) -> str:
        """The prefix of each entry in the logs: empty, or the name if it is not the default."""
        return "" if self.name == DEFAULT_NAME else f"{self.name}_"

    def result(self) -> dict[str, tf.Tensor]:
        """Returns the scores since the last reset; in a `tf.function` without those per class."""
        confusion = tf.convert_to_tensor(self.confusion)
        result = {
            name: tf.cast(value, self.dtype) for name, value in score_tensors(confusion).items()
        }
        names = {"iou": "per_class", "predicted_share": "predicted_share"}
        of_classes = {kind: result.pop(name) for kind, name in names.items()}
        if tf.executing_eagerly():
            ignored, maps = tf.convert_to_tensor(self._seen).numpy()
            pixels = confusion.numpy().sum(1)
            warn_of_single_class(pixels, ignored, maps, self.ignore_label)
            if self.per_class:
                for kind, values in of_classes.items():
                    keys = [f"{kind}_{key}" for key in self.class_keys]
                    result |= zip(keys, tf.unstack(values), strict=True)
        return {f"{self.prefix}{key}": value for key, value in result.items()}

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "class_names": self.class_names,
            "ignore_label": self.ignore_label,
            "per_class": self.per_class,
        }
