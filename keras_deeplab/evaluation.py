"""Scores of a model on labelled images."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_deeplab.boundary import BoundaryScores
from keras_deeplab.confidence import CalibrationError, labels_with
from keras_deeplab.crf import PRESETS, DenseCRF, RefinedModel, SearchReport, search
from keras_deeplab.inference import (
    Predictor,
    logits_spec,
    model_functions,
    predict,
    predict_pixels,
)
from keras_deeplab.metrics import SegmentationMetrics, by_name, number, score_tensors, scores
from keras_deeplab.models.multi_scale import image_scale, multi_scales, unwrapped
from keras_deeplab.names import printable
from keras_deeplab.runtimes import ExportedModel
from keras_deeplab.validation import error, integer

LISTED_IMAGES = 20  # of the worst, and of the best
# The scores of each class by their titles in tables.
CLASS_SCORES = {
    "IoU": "per_class",
    "boundary IoU": "boundary_per_class",
    "F1": "f1",
    "precision": "precision",
    "recall": "recall",
}


def evaluate(
    model: Predictor,
    dataset: tf.data.Dataset,
    class_names: Sequence[str] | None = None,
    ignore_label: int | None = 255,
    verbose: str | int = "auto",
    boundary: bool = False,
    calibration: bool = False,
    confusion: bool = False,
    image_names: Sequence[str] | None = None,
) -> dict:
    """Evaluates a model on labelled images, from one confusion matrix over all pixels.

    The images may have different sizes (in batches of 1): the model is traced once. Images too
    large for the memory are predicted in windows, as `predict` does.

    Args:
        model: Segmentation model on pixels in 0..255, or an export that
            `runtimes.open_exported` opened, which computes in its own runtime, or a
            `crf.RefinedModel`.
        dataset: Finite dataset of `(images, labels)`: images `(batch, height, width, channels)`
            in 0..255, labels `(batch, height, width)` or `(batch, height, width, 1)`; or of
            single images and label maps without the batch axis.
        class_names: One name per class; the class numbers by default.
        ignore_label: Label of ignored pixels, or None.
        verbose: `"auto"` or 1 for a progress bar, 2 for one line at the end, 0 for silent.
        boundary: Whether to compute boundary scores too, which takes about 0.1 seconds for an
            image of 512 x 512. Images of different sizes must be in batches of 1: where they are
            padded to one size, the padding is another label.
        calibration: Whether to compute the calibration error of the probabilities too.
        confusion: Whether to return the confusion matrix too.
        image_names: One name per image, such as `source.names(split)`, for `worst_images` and
            `best_images`.

    Returns:
        A dict that can be written as JSON: the entries of `metrics.scores` (`mean_iou`,
        `per_class`, `f1`, `pixel_accuracy` and more), `true_share` (a dict of class name to its
        share of the true pixels, to compare with `predicted_share`), `images`, `pixels` (without
        ignored ones), `worst_images` (up to 20 images of the lowest mean IoU, each with its
        `index`, its `name` if known, and `mean_iou` over the classes in its truth or prediction),
        `best_images` (up to 20 of the highest), and with `boundary` the entries of
        `boundary.BoundaryScores` (`boundary_mean_iou`, `boundary_per_class`, `trimap_mean_iou`),
        with `calibration` those of `confidence.CalibrationError` (`expected_calibration_error`,
        `reliability`), with `confusion` the pixels `confusion[true class][predicted class]`.

    Raises:
        ValueError: If the dataset is empty, infinite or has other elements, its images do not have
            the size that the model fixes, or the names do not fit.
        tf.errors.InvalidArgumentError: If a label is out of range.

    Example:

    >>> report = keras_deeplab.evaluate(model, dataset, class_names=["sky", "ground"])
    >>> report["mean_iou"], report["per_class"]["sky"]
    (0.81, 0.93)
    """
    spec, num_classes = logits_spec(model)
    metric = SegmentationMetrics(num_classes, class_names, ignore_label, per_class=False)
    boundaries = BoundaryScores(num_classes, class_names, ignore_label) if boundary else None
    calibrations = CalibrationError() if calibration else None
    dataset = pair_batches(dataset)
    functions = model_functions(model)

    @tf.function(autograph=False, reduce_retracing=True)
    def count(truth: tf.Tensor, predicted: tf.Tensor) -> tf.Tensor:
        """Adds an image to the confusion matrix and returns its mean IoU."""
        before = tf.convert_to_tensor(metric.confusion)
        metric.update_state(truth, predicted)
        return score_tensors(tf.convert_to_tensor(metric.confusion) - before)["mean_iou"]

    steps = int(dataset.cardinality())
    progress = keras.utils.Progbar(
        None if steps < 0 else steps, verbose=1 if verbose == "auto" else verbose
    )
    done, of_images = 0, []
    for done, (pixels, truth) in enumerate(dataset, 1):
        check_images(pixels, spec)
        kept = None if calibrations is None else labels_with(partial(np.max, axis=-1))
        found = predict_pixels(functions, pixels.numpy(), kept, verbose=0)
        labels = found if calibrations is None else found[..., 0].astype(np.int32)
        predicted = tf.convert_to_tensor(labels)
        for index in range(len(predicted)):
            mean_iou = count(truth[index : index + 1], predicted[index : index + 1])
            of_images.append(number(mean_iou.numpy()))
        truth = tf.reshape(truth, tf.shape(predicted)).numpy()
        if calibrations is not None:
            valid = truth != metric.ignore_label
            calibrations.update(found[..., 1][valid], labels[valid] == truth[valid])
        if boundaries is not None:
            for maps in zip(truth, labels, strict=True):
                boundaries.update(*maps)
        progress.update(done, finalize=False)
    if not done:
        raise error("dataset", "non-empty", dataset)
    mean_iou = float(metric.result()["mean_iou"])  # warns of masks of 0 and 255
    progress.target = done
    progress.update(done, [("mean_iou", mean_iou)], finalize=True)
    counted = metric.confusion.numpy()
    report, total = scores(counted, class_names), counted.sum()
    ranked = _ranked(of_images, image_names)
    shares = counted.sum(1) / (total if total else np.nan)
    return {
        **report,
        "true_share": by_name(shares, list(report["per_class"])),
        "pixels": int(total),
        "images": len(of_images),
        "worst_images": ranked[:LISTED_IMAGES],
        "best_images": ranked[::-1][:LISTED_IMAGES],
        **({} if boundaries is None else boundaries.result()),
        **({} if calibrations is None else calibrations.result()),
        **({"confusion": counted.astype(np.int64).tolist()} if confusion else {}),
    }


def _ranked(mean_ious: list[float | None], names: Sequence[str] | None) -> list[dict[str, Any]]:
    """The images from the lowest mean IoU to the highest, without fully ignored ones."""
    if names is not None and len(names) != len(mean_ious):
        raise error("image_names", f"{len(mean_ious)} names", names)
    known = [index for index, value in enumerate(mean_ious) if value is not None]
    return [
        {"index": i, **({"name": names[i]} if names else {}), "mean_iou": mean_ious[i]}
        for i in sorted(known, key=mean_ious.__getitem__)
    ]


def check_images(pixels: tf.Tensor, spec: tf.TensorSpec) -> None:
    """Raises a ValueError if images do not have the shape of the model's input.

    Warns of images in 0..1.
    """
    if not spec.shape.is_compatible_with(pixels.shape):
        rule = f"of images of the model's input shape {tuple(spec.shape)}"
        raise error("dataset", rule, tuple(pixels.shape))
    if pixels.dtype.is_floating and 0 < (highest := tf.reduce_max(pixels)) <= 1:
        warnings.warn(
            "`dataset` must have images of values in 0..255. Received: values up to "
            f"{highest:.3g}, almost black. Do not divide by 255.",
            stacklevel=3,
        )


def pair_batches(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Returns a dataset of `(images, labels)` with a batch axis, or raises a ValueError."""
    element = getattr(dataset, "element_spec", None)
    is_pair = isinstance(element, tuple) and len(element) == 2
    if not is_pair or not all(isinstance(one, tf.TensorSpec) for one in element):
        advice = "Use data.evaluation_dataset(source)"
        if isinstance(element, tuple) and len(element) == 3:
            advice = "Leave the weights out: `.map(lambda x, y, w: (x, y))`"
        rule = "a tf.data.Dataset of (images, labels)"
        raise error("dataset", rule, element or type(dataset), advice)
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
        **{title: (values, ".3f") for title, values in class_scores(report).items()},
        "predicted": (report["predicted_share"], ".2%"),
        "in truth": (report["true_share"], ".2%"),
    }
    totals = {
        "mean IoU": report["mean_iou"],
        "frequency-weighted IoU": report["frequency_weighted_iou"],
        "pixel accuracy": report["pixel_accuracy"],
    }
    if "mean_f1" in report:  # those of older versions lack it
        totals["mean F1"] = report["mean_f1"]
    if "boundary_mean_iou" in report:
        totals["boundary mean IoU"] = report["boundary_mean_iou"]
        for pixels, value in report["trimap_mean_iou"].items():
            totals[f"mean IoU within {pixels} px of a boundary"] = value
    if "expected_calibration_error" in report:
        totals["expected calibration error"] = report["expected_calibration_error"]
    rows = [("", list(columns))]
    for name in report["per_class"]:
        cells = [_cell(values[name], form) for values, form in columns.values()]
        rows.append((printable(name), cells))
    widths = [max(len("absent"), len(title)) for title in columns]
    # Apart from the classes, whose rows are long enough without the long names of the totals.
    below = [(name, [_cell(value, ".3f")]) for name, value in totals.items()]
    title = f"Scores per class on the {report['images']} images of {split}:"
    return "\n".join([title, *_lines(rows, widths), *_lines(below, widths[:1])])


def _lines(rows: list[tuple[str, list[str]]], widths: list[int]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    return [
        f"  {name:<{width}}" + "".join(f"  {c:>{n}}" for c, n in zip(cells, widths, strict=True))
        for name, cells in rows
    ]


def class_scores(report: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """Returns the scores of each class by their titles, those that a report has."""
    return {title: report[key] for title, key in CLASS_SCORES.items() if key in report}


def _cell(value: float | None, form: str) -> str:
    return "absent" if value is None else format(value, form)


def search_crf(
    model: Predictor,
    dataset: tf.data.Dataset,
    images: int,
    start: DenseCRF = PRESETS["v2"],
    ignore_label: int | None = 255,
) -> SearchReport:
    """Searches the constants of a CRF for a model, as `crf.search` does, on some labelled images.

    Args:
        model: As of `evaluate`.
        dataset: As of `evaluate`, of more images.
        images: Number of images for the search, the first ones. Evaluate on others.
        start: The CRF whose constants that are not searched are kept.
        ignore_label: Label of ignored pixels, or None.

    Returns:
        The report of `crf.search`.

    Raises:
        ValueError: If the dataset has not more than that number of images.

    Example:

    >>> report = keras_deeplab.evaluation.search_crf(model, dataset, images=30)
    >>> refined = keras_deeplab.crf.RefinedModel(model, report.best)
    """
    dataset = pair_batches(dataset).unbatch().batch(1)
    pairs = list(dataset.take(integer("images", images) + 1).as_numpy_iterator())
    if len(pairs) <= images:
        raise error("images", f"below the {len(pairs)} images of the dataset", images)
    functions = model_functions(model)
    samples = [
        (
            pixels[0],
            predict(functions, pixels[0], probabilities=True),
            labels.reshape(pixels.shape[1:3]),
        )
        for pixels, labels in pairs[:images]
    ]
    return search(samples, start=start, ignore_label=ignore_label)


def prediction_settings(model: Predictor) -> dict[str, Any]:
    """Returns output stride, image scale, views (outermost first) and CRF of a model, as JSON.

    Of an export output stride and views are unknown.
    """
    if isinstance(model, RefinedModel):
        return {**prediction_settings(model.model), "crf": model.crf.to_dict()}
    if isinstance(model, ExportedModel):
        return {"export": model.path.name, "image_scale": model.metadata.image_scale}
    keys = ("scales", "flip", "fusion")
    views = [one for one in multi_scales(model) if not one.is_image_scale]
    return {
        "output_stride": getattr(unwrapped(model), "output_stride", None),
        "image_scale": image_scale(model),
        "test_time_augmentation": [{key: getattr(one, key) for key in keys} for one in views],
    }
