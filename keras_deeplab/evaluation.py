"""Scores of a model on labelled images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_deeplab.boundary import BoundaryScores
from keras_deeplab.inference import label_function, logits_spec
from keras_deeplab.metrics import SegmentationMetrics, by_name, scores
from keras_deeplab.models import MultiScale
from keras_deeplab.validation import error


def evaluate(
    model: keras.Model,
    dataset: tf.data.Dataset,
    class_names: Sequence[str] | None = None,
    ignore_label: int | None = 255,
    verbose: str | int = "auto",
    boundary: bool = False,
) -> dict:
    """Evaluates a model on labelled images, from one confusion matrix over all pixels.

    The images may have different sizes (in batches of 1): the model is traced once.

    Args:
        model: Segmentation model on pixels in 0..255.
        dataset: Finite dataset of `(images, labels)`: images `(batch, height, width, channels)`
            in 0..255, labels `(batch, height, width)` or `(batch, height, width, 1)`; or of
            single images and label maps without the batch axis.
        class_names: One name per class; the class numbers by default.
        ignore_label: Label of ignored pixels, or None.
        verbose: `"auto"` or 1 for a progress bar, 2 for one line at the end, 0 for silent.
        boundary: Whether to compute boundary scores too, which takes about 0.1 seconds for an
            image of 512 x 512.

    Returns:
        A dict that can be written as JSON: the entries of `metrics.scores` (`mean_iou`,
        `per_class`, `pixel_accuracy` and more), `true_share` (a dict of class name to its share of
        the true pixels, to compare with `predicted_share`), `images`, `pixels` (without ignored
        ones), and with `boundary` the entries of `boundary.BoundaryScores` (`boundary_mean_iou`,
        `boundary_per_class`, `trimap_mean_iou`).

    Raises:
        ValueError: If the dataset is empty, infinite or has other elements, or the names do not
            fit.
        tf.errors.InvalidArgumentError: If a label is out of range.

    Example:

    >>> report = keras_deeplab.evaluate(model, dataset, class_names=["sky", "ground"])
    >>> report["mean_iou"], report["per_class"]["sky"]
    (0.81, 0.93)
    """
    spec, num_classes = logits_spec(model)
    metric = SegmentationMetrics(num_classes, class_names, ignore_label, per_class=False)
    boundaries = BoundaryScores(num_classes, class_names, ignore_label) if boundary else None
    dataset = pair_batches(dataset)
    step = _evaluation_step(model, metric, dataset.element_spec, spec)
    steps = int(dataset.cardinality())
    current = tf.function(metric.result, autograph=False)  # without the warnings of an eager call
    progress = keras.utils.Progbar(
        None if steps < 0 else steps,
        verbose=1 if verbose == "auto" else verbose,
        stateful_metrics=list(current()),
    )
    images, done = 0, 0
    for done, (pixels, labels) in enumerate(dataset, 1):
        maps = step(pixels, labels)
        if boundaries is not None:
            for truth, predicted in zip(*(side.numpy() for side in maps), strict=True):
                boundaries.update(truth, predicted)
        images += int(tf.shape(pixels)[0])
        values = [(name, float(value)) for name, value in current().items()]
        progress.update(done, values, finalize=False)
    if not done:
        raise error("dataset", "non-empty", dataset)
    metric.result()  # warns of masks of 0 and 255
    progress.target = done
    progress.update(done, values, finalize=True)
    confusion = metric.confusion.numpy()
    report, counted = scores(confusion, class_names), confusion.sum()
    shares = confusion.sum(1) / (counted if counted else np.nan)
    return {
        **report,
        "true_share": by_name(shares, list(report["per_class"])),
        "pixels": int(counted),
        "images": images,
        **({} if boundaries is None else boundaries.result()),
    }


def pair_batches(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Returns a dataset of `(images, labels)` with a batch axis, or raises a ValueError."""
    element = getattr(dataset, "element_spec", None)
    if not isinstance(element, tuple) or len(element) != 2:
        raise error("dataset", "a tf.data.Dataset of (images, labels)", element or type(dataset))
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise error("dataset", "finite", dataset, "Leave out `repeat()`.")
    return dataset.batch(1) if element[0].shape.rank == 3 else dataset


def _evaluation_step(
    model: keras.Model, metric: SegmentationMetrics, element: tuple, spec: tf.TensorSpec
) -> tf.types.experimental.PolymorphicFunction:
    """The function that adds a batch to the metric and returns truth and predicted label maps."""
    pixels, labels = element
    any_size = tf.TensorSpec([None, *spec.shape[1:]], pixels.dtype)
    maps = tf.TensorSpec([None] * labels.shape.rank, labels.dtype)
    has_channel_axis = labels.shape.rank == 4
    labels_of = label_function(model)

    @tf.function(input_signature=[any_size, maps])
    def step(images: tf.Tensor, truth: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        predicted = labels_of(tf.cast(images, spec.dtype))
        truth = tf.squeeze(truth, -1) if has_channel_axis else truth
        metric.update_state(truth, predicted)
        return truth, predicted

    return step


def scores_table(report: dict[str, Any], split: str) -> str:
    """Formats the report of `evaluate` on a split: scores and pixel shares per class, and totals.

    Example:

    >>> report = keras_deeplab.evaluate(model, dataset, class_names=["sky", "ground"])
    >>> print(keras_deeplab.evaluation.scores_table(report, "val"))
    """
    columns = {
        "IoU": (report["per_class"], ".3f"),
        "predicted": (report["predicted_share"], ".2%"),
        "in truth": (report["true_share"], ".2%"),
    }
    totals = {
        "mean IoU": report["mean_iou"],
        "frequency-weighted IoU": report["frequency_weighted_iou"],
        "pixel accuracy": report["pixel_accuracy"],
    }
    if "boundary_per_class" in report:
        columns["boundary IoU"] = (report["boundary_per_class"], ".3f")
        totals["boundary mean IoU"] = report["boundary_mean_iou"]
        for pixels, value in report["trimap_mean_iou"].items():
            totals[f"mean IoU within {pixels} px of a boundary"] = value
    rows = [("", list(columns))]
    for name in report["per_class"]:
        rows.append((name, [_cell(values[name], form) for values, form in columns.values()]))
    rows += [(name, [_cell(value, ".3f")]) for name, value in totals.items()]
    width = max(len(name) for name, _ in rows)
    lines = [f"  {name:<{width}}" + "".join(f"  {c:>12}" for c in cells) for name, cells in rows]
    return "\n".join([f"IoU per class on the {report['images']} images of {split}:", *lines])


def _cell(value: float | None, form: str) -> str:
    return "absent" if value is None else format(value, form)


def prediction_settings(model: keras.Model) -> dict[str, Any]:
    """Returns output stride and test-time augmentation (outermost first) of a model, as JSON."""
    augmentation = []
    while isinstance(model, MultiScale):
        config = model.get_config()
        augmentation.append({key: config[key] for key in ("scales", "flip", "fusion")})
        model = model.model
    output_stride = getattr(model, "output_stride", None)
    return {"output_stride": output_stride, "test_time_augmentation": augmentation}
