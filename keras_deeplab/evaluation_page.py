"""The report of an evaluation as one HTML page that needs no other file."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_deeplab.confidence import BINS, labels_with, margin
from keras_deeplab.data import Source
from keras_deeplab.evaluation import class_scores
from keras_deeplab.html_page import SIDE, bar, cell, figure, page, picture, table
from keras_deeplab.inference import Predictor, model_functions, predict_pixels
from keras_deeplab.pictures import confusion_picture, overlay

SHOWN_WORST, SHOWN_BEST = 12, 6  # images
PLOT = 300  # pixels of the diagram's side


def evaluation_page(
    report: dict[str, Any], model: Predictor, source: Source, split: str, title: str
) -> str:
    """Returns scores as HTML: bars of the classes, confusion, reliability, worst and best images.

    Args:
        report: Of `evaluate` with `calibration` and `confusion` on `evaluation_dataset(source,
            split)`.
        model: The model that was evaluated, which predicts the shown images again: up to 12 of
            the worst and 6 of the best.
        source, split: The data set, of whose images these are.
        title: Name of the model or data set.

    Returns:
        The text of a page that needs no other file.

    Example:

    >>> source = data.Shapes(train=3, val=3)
    >>> model = keras_deeplab.DeepLabV3(source.info.num_classes, "mobilenet_v2")
    >>> pairs = data.evaluation_dataset(source)
    >>> report = keras_deeplab.evaluate(model, pairs, calibration=True, confusion=True, verbose=0)
    >>> from keras_deeplab.evaluation_page import evaluation_page
    >>> page = evaluation_page(report, model, source, "val", "shapes")
    """
    return page(title, evaluation_parts(report, model, source, split))


def evaluation_parts(
    report: dict[str, Any], model: Predictor, source: Source, split: str
) -> list[str]:
    """Returns the parts of `evaluation_page`, the first of which are the totals."""
    functions = model_functions(model)
    worst = report["worst_images"][:SHOWN_WORST]
    best = [row for row in report["best_images"] if row not in worst][:SHOWN_BEST]
    confusion = confusion_picture(np.array(report["confusion"]), list(report["per_class"]))
    parts = [
        _totals(report, split),
        _classes(report, source),
        f"<h2>Confusion</h2>{picture(confusion, 'PNG')}",
        _reliability(report),
        "<h2>Worst images</h2><p>Image, truth, prediction, and the difference between the two "
        "largest probabilities: white is certain, black undecided.</p>",
        *_images(worst, functions, source, split),
    ]
    if best:
        parts += ["<h2>Best images</h2>", *_images(best, functions, source, split)]
    return parts


def _totals(report: dict[str, Any], split: str) -> str:
    totals = {
        "mean IoU": report["mean_iou"],
        "boundary mean IoU": report.get("boundary_mean_iou"),
        "mean F1": report.get("mean_f1"),
        "pixel accuracy": report["pixel_accuracy"],
        "expected calibration error": report["expected_calibration_error"],
    }
    rows = [(name, cell(value)) for name, value in totals.items() if value is not None]
    heading = f"{report['images']} images of {html.escape(split)}"
    return f"<h2>{heading}</h2>{table(rows)}"


def _classes(report: dict[str, Any], source: Source) -> str:
    ious, *others = (columns := class_scores(report)).values()
    heads = ["class", *columns, "predicted", "in truth"]
    rows = [f"<tr>{''.join(f'<th>{head}' for head in heads)}"]
    for (name, iou), color in zip(ious.items(), source.info.colors, strict=True):
        cells = f"<td>{bar(iou, color)} {iou:.3f}" if iou is not None else "<td>absent"
        cells += "".join(f"<td>{cell(values[name])}" for values in others)
        for share in (report["predicted_share"][name], report["true_share"][name]):
            cells += "<td>" if share is None else f"<td>{share:.2%}"
        rows.append(f"<tr><td>{html.escape(name)}{cells}")
    return f"<h2>Classes</h2><table>{''.join(rows)}</table>"


def _reliability(report: dict[str, Any]) -> str:
    """The accuracy of each bin of confidence as a bar, to compare with the diagonal."""
    width, bars = PLOT / BINS, ""
    for row in report["reliability"]:
        left = (math.ceil(row["confidence"] * BINS) - 1) * width
        height = PLOT * row["accuracy"]
        bars += (
            f'<rect x="{left:.1f}" y="{PLOT - height:.1f}" width="{width - 1:.1f}" '
            f'height="{height:.1f}" fill="#104e8b"><title>confidence {row["confidence"]:.3f}, '
            f"accuracy {row['accuracy']:.3f}, {row['pixels']:,} pixels</title></rect>"
        )
    return (
        "<h2>Reliability</h2><p>Accuracy (vertical) of the pixels of each confidence (horizontal), "
        "both from 0 to 1. Bars below the line are overconfident. Point at a bar for its pixels."
        f'</p><svg width="{PLOT}" height="{PLOT}" style="border:1px solid #222">{bars}'
        f'<line x1="0" y1="{PLOT}" x2="{PLOT}" y2="0" stroke="#c33" stroke-width="2"/></svg>'
    )


def _images(
    rows: Sequence[dict[str, Any]], functions: Any, source: Source, split: str
) -> Iterator[str]:
    places = tf.constant([row["index"] for row in rows], tf.int64)
    pairs = source.checked_dataset(split, tf.data.Dataset.from_tensor_slices(places))
    names, colors = source.names(split), source.info.colors
    for row, (image, truth) in zip(rows, pairs.as_numpy_iterator(), strict=True):
        found = predict_pixels(functions, image, labels_with(margin), verbose=0)
        predicted, certain = found[..., 0].astype(np.int32), found[..., 1:]
        step = -(-max(truth.shape) // SIDE)
        image, truth, predicted, certain = (
            values[::step, ::step] for values in (image, truth, predicted, certain)
        )
        shown = [overlay(image, truth, colors, alpha) for alpha in (0.0, 1.0)]
        shown.append(overlay(image, predicted, colors, 1.0, ignore_label=None))
        shown.append(np.rint(255 * certain).astype(np.uint8).repeat(3, -1))
        yield figure(shown, f"{names[row['index']]}: mean IoU {row['mean_iou']:.3f}")
