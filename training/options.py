"""Options that several commands share, and errors as one line."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras

import keras_deeplab
from keras_deeplab.models.multi_scale import checked_scales

MODELS = {
    "deeplab_v1": keras_deeplab.DeepLabV1,
    "deeplab_v2": keras_deeplab.DeepLabV2,
    "deeplab_v3": keras_deeplab.DeepLabV3,
    "deeplab_v3_plus": keras_deeplab.DeepLabV3Plus,
    "unet": keras_deeplab.UNet,
}

# An ImportError says which extra package is missing.
MENDABLE = (ValueError, OSError, ImportError, keras_deeplab.export.ExportError)

Main = Callable[[Sequence[str] | None], int]


def command(main: Main) -> Main:
    """Turns the errors that a user can mend into one message and exit status 2."""

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        try:
            return main(argv)
        except MENDABLE as error:
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
    """Loads a `.keras` file, and changes its output stride where one is given."""
    model = keras_deeplab.load_model(path, compile=False)
    if output_stride is None:
        return model
    network = innermost(model)
    if not isinstance(network, keras_deeplab.models.SegmentationModel):
        raise ValueError(
            "--output-stride is for this package's models; "
            f"{path} holds a {type(network).__name__}."
        )
    return model.with_output_stride(output_stride)


def innermost(model: keras.Model) -> keras.Model:
    """The model that sees one view of an image."""
    while isinstance(model, keras_deeplab.MultiScale):
        model = model.model
    return model


class Scales(argparse.Action):
    """Scales of `MultiScale`, refused before anything is done."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        """Stores them."""
        try:
            checked_scales(values)
        except ValueError as error:
            parser.error(f"{option}: {error}")
        setattr(namespace, self.dest, values)


def add_views(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Adds the options of several views of each image."""
    parser.add_argument(
        "--scales",
        type=positive_float,
        nargs="+",
        action=Scales,
        metavar="S",
        help="sees each image at these scales and takes the mean of the probabilities, such as "
        "0.5 0.75 1 1.25 1.5 1.75 as in the papers; default: 1",
    )
    parser.add_argument(
        "--flip",
        action="store_true",
        help="sees each image mirrored too, which takes twice as long",
    )


def with_views(
    model: keras.Model, scales: Sequence[float] | None, flip: bool = False
) -> keras.Model:
    """The model that takes the mean over scales and mirror images, resized as the model does."""
    if scales is None and not flip:
        return model
    return keras_deeplab.MultiScale(model, scales or (1.0,), fusion="mean", flip=flip)


def views(model: keras.Model) -> list[dict[str, Any]]:
    """How a model looks at an image, the outermost first, as JSON; of one view nothing."""
    found = []
    while isinstance(model, keras_deeplab.MultiScale):
        config = model.get_config()
        found.append({key: config[key] for key in ("scales", "flip", "fusion")})
        model = model.model
    return found


def scores_table(report: dict, split: str) -> str:
    """Per-class IoU, how much of each class is predicted and true, and the totals, as lines."""
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
    width = max(len(str(name)) for name in [*report["per_class"], *totals])
    rows = [
        [name, *(_shown(values[name], form) for values, form in columns.values())]
        for name in report["per_class"]
    ]
    rows += [[name, _shown(value, ".3f")] for name, value in totals.items()]
    lines = [
        f"  {name:<{width}}" + "".join(f"  {cell:>12}" for cell in cells)
        for name, *cells in [["", *columns], *rows]
    ]
    return "\n".join([f"IoU per class on the {report['images']} images of {split}:", *lines])


def _shown(value: float | None, form: str) -> str:
    return "absent" if value is None else format(value, form)
