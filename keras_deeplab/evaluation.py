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
from keras_deeplab.runtimes import ExportedModel
from keras_deeplab.validation import error


def evaluate(
    model: keras.Model | ExportedModel,
    dataset: tf.data.Dataset,
    class_names: Sequence[str] | None = None,
    ignore_label: int | None = 255,
    verbose: str | int = "auto",
    boundary: bool = False,
) -> dict:
    """Evaluates a model on labelled images, from one confusion matrix over all pixels.

    The images may have different sizes (in batches of 1): the model is traced once.

    Args:
        model: Segmentation model on pixels in 0..255, or an export that
            `runtimes.open_exported` opened, which computes in its own runtime.
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
    num_classes = number_of_classes(model)
    if isinstance(model, ExportedModel):
        labels_of = model.labels
    else:
        traced, (spec, _) = label_function(model), logits_spec(model)

        def labels_of(pixels: tf.Tensor) -> tf.Tensor:
            return traced(tf.cast(pixels, spec.dtype))

    metric = SegmentationMetrics(num_classes, class_names, ignore_label, per_class=False)
    boundaries = BoundaryScores(num_classes, class_names, ignore_label) if boundary else None
    dataset = pair_batches(dataset)
    count = tf.function(metric.update_state, autograph=False, reduce_retracing=True)
    steps = int(dataset.cardinality())
    progress = keras.utils.Progbar(
        None if steps < 0 else steps, verbose=1 if verbose == "auto" else verbose
    )
    images = done = 0
    for done, (pixels, truth) in enumerate(dataset, 1):
        predicted = tf.convert_to_tensor(labels_of(pixels))
        count(truth, predicted)
        if boundaries is not None:
            truth = tf.reshape(truth, tf.shape(predicted))
            for maps in zip(truth.numpy(), predicted.numpy(), strict=True):
                boundaries.update(*maps)
        images += len(predicted)
        progress.update(done, finalize=False)
    if not done:
        raise error("dataset", "non-empty", dataset)
    mean_iou = float(metric.result()["mean_iou"])  # warns of masks of 0 and 255
    progress.target = done
    progress.update(done, [("mean_iou", mean_iou)], finalize=True)
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


def number_of_classes(model: keras.Model | ExportedModel) -> int:
    """Returns the number of classes of a segmentation model or of an export."""
    return model.num_classes if isinstance(model, ExportedModel) else logits_spec(model)[1]


def prediction_settings(model: keras.Model | ExportedModel) -> dict[str, Any]:
    """Returns output stride and test-time augmentation (outermost first) of a model, as JSON.

    They are unknown of an export.
    """
    if isinstance(model, ExportedModel):
        return {"export": model.path.name}
    augmentation = []
    while isinstance(model, MultiScale):
        config = model.get_config()
        augmentation.append({key: config[key] for key in ("scales", "flip", "fusion")})
        model = model.model
    output_stride = getattr(model, "output_stride", None)
    return {"output_stride": output_stride, "test_time_augmentation": augmentation}
