"""Options that several commands share, and errors as one line."""

from __future__ import annotations

import argparse
import functools
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import keras

import keras_deeplab

MODELS = {
    "deeplab_v1": keras_deeplab.DeepLabV1,
    "deeplab_v2": keras_deeplab.DeepLabV2,
    "deeplab_v3": keras_deeplab.DeepLabV3,
    "deeplab_v3_plus": keras_deeplab.DeepLabV3Plus,
    "unet": keras_deeplab.UNet,
}

Main = Callable[[Sequence[str] | None], int]


def command(main: Main) -> Main:
    """Turns the errors that a user can mend into one message and exit status 2."""

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        try:
            return main(argv)
        except (ValueError, OSError, keras_deeplab.export.ExportError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2

    return run


def positive(text: str) -> int:
    """A positive integer from the command line."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, received {text}")
    return value


def positive_float(text: str) -> float:
    """A positive number from the command line."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number, received {text}")
    return value


def load_model(path: Path, output_stride: int | None = None) -> keras.Model:
    """Reads a `.keras` file, and changes its output stride where one is given."""
    if path.suffix != ".keras" or not path.is_file():
        raise ValueError(f"--model must be an existing .keras file, received {str(path)!r}.")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"--model: {path} is damaged or cut off: a .keras file is a zip archive.")
    model = keras.models.load_model(path, compile=False)
    if output_stride is None:
        return model
    if not isinstance(model, keras_deeplab.models.SegmentationModel):
        raise ValueError(
            f"--output-stride is for this package's models; {path} holds a {type(model).__name__}."
        )
    return model.with_output_stride(output_stride)


def scores_table(report: dict, split: str) -> str:
    """Per-class IoU and the two totals, as lines."""
    totals = {"mean IoU": report["mean_iou"], "pixel accuracy": report["pixel_accuracy"]}
    width = max(len(str(name)) for name in [*report["per_class"], "pixel accuracy"])
    lines = [
        f"  {name:<{width}}  {'absent' if value is None else format(value, '.3f')}"
        for name, value in [*report["per_class"].items(), *totals.items()]
    ]
    return "\n".join([f"IoU per class on the {report['images']} images of {split}:", *lines])
