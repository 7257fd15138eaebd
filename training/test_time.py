"""What each change at test time gains and costs: `python -m training.test_time --model FILE`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

import keras_deeplab as kd
from keras_deeplab.cli.options import (
    DATA,
    Parser,
    add_crf,
    check_classes,
    command,
    model_path,
    positive,
)
from keras_deeplab.crf import DenseCRF, RefinedModel, open_crf
from keras_deeplab.inference import Predictor, model_functions
from keras_deeplab.models.multi_scale import (
    unwrapped,
    with_test_time_augmentation,
    without_views,
)

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # of V3 and V3+
LARGER = (1.5, 2.0)  # each as the only one
TIMED = 5  # images, after one that compiles
TRIMAP = "4"  # pixels
HEAD = ("", "mean IoU", "boundary mean IoU", f"mean IoU within {TRIMAP} px", "ms per image")


def parser() -> Parser:
    """Returns the parser of the command line."""
    made = Parser(
        prog="python -m training.test_time",
        description="Measures a model as it is, at output stride 8, on enlarged images, at several "
        "scales and mirrored (the mean of the probabilities), with a dense CRF, and with all of "
        "these; prints a table in Markdown.",
    )
    add = made.add_argument
    add(
        "--model",
        type=model_path,
        required=True,
        help=".keras file; of a MultiScale the model inside",
    )
    add("--data", default="shapes", help=DATA)
    add("--split", default="val", help="train, val or test")
    add("--limit", type=positive, metavar="N", help="measure on the first N images")
    add_crf(made)
    add("--scales", type=float, nargs="+", default=list(SCALES), metavar="S", help="of the image")
    return made


@command(parser)
def main(options: argparse.Namespace) -> None:
    """Runs the command."""
    source = kd.data.open_source(options.data)
    model = without_views(kd.load_model(options.model, compile=False))
    check_classes(options, model, source.info.classes)
    dataset = kd.data.evaluation_dataset(source, options.split).take(options.limit or -1)
    print(f"| {' | '.join(HEAD)} |", f"|{' --- |' * len(HEAD)}", sep="\n", flush=True)
    crf = open_crf(options.crf or "v2")
    for name, changed in variants(model, options.scales, crf):
        print(f"| {' | '.join([name, *cells(changed, dataset)])} |", flush=True)


def variants(
    model: keras.Model, scales: Sequence[float], crf: DenseCRF
) -> Iterator[tuple[str, Predictor]]:
    """Yields the rows: a name and a model. A stride that a model cannot have is left out."""
    has_finer = unwrapped(model).get_config().get("output_stride", 8) != 8
    fine = model.with_output_stride(8) if has_finer else model
    yield "plain", model
    if has_finer:
        yield "output stride 8", fine
    for scale in LARGER:
        yield f"scale {scale:g}", with_test_time_augmentation(model, [scale])
    yield "mirrored", with_test_time_augmentation(model, None, flip=True)
    yield "scales", with_test_time_augmentation(model, scales)
    yield "scales, mirrored", with_test_time_augmentation(model, scales, flip=True)
    yield "dense CRF", RefinedModel(model, crf)
    everything = with_test_time_augmentation(fine, scales, flip=True)
    if has_finer:
        yield "stride 8, scales, mirrored", everything
    yield "all", RefinedModel(everything, crf)


def cells(model: Predictor, dataset: tf.data.Dataset) -> list[str]:
    """Returns the scores of a row in percent, and the median time of a label map."""
    report = kd.evaluate(model, dataset, boundary=True, verbose=0)
    labels_of, times = model_functions(model).labels, []
    for pixels, _ in dataset.take(TIMED + 1):
        start = time.perf_counter()
        np.asarray(labels_of(pixels))
        times.append(time.perf_counter() - start)
    scores = [report["mean_iou"], report["boundary_mean_iou"], report["trimap_mean_iou"][TRIMAP]]
    shown = ["" if score is None else f"{100 * score:.1f}" for score in scores]
    return [*shown, f"{1000 * np.median(times[1:] or times):.0f}"]


if __name__ == "__main__":
    raise SystemExit(main())
