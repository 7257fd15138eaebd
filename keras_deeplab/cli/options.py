"""Options that several commands share, and errors as one line."""

from __future__ import annotations

import argparse
import difflib
import functools
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import keras

import keras_deeplab
from keras_deeplab import names
from keras_deeplab.models.multi_scale import checked_scales

MODELS = {
    "deeplab_v1": keras_deeplab.DeepLabV1,
    "deeplab_v2": keras_deeplab.DeepLabV2,
    "deeplab_v3": keras_deeplab.DeepLabV3,
    "deeplab_v3_plus": keras_deeplab.DeepLabV3Plus,
    "unet": keras_deeplab.UNet,
}

# What other tools call options of these commands, and options that only they have.
OTHER_NAMES = {
    "lr": "--learning-rate",
    "bs": "--batch-size",
    "checkpoint": "--weights",
    "pretrained": "--weights",
    "numclasses": "--classes",
}
NO_OPTIONS = {"numclasses": "The number of classes is that of the data set or the model."}

# An ImportError says which extra package is missing.
MENDABLE = (ValueError, OSError, ImportError, MemoryError, keras_deeplab.export.ExportError)

Main = Callable[[Sequence[str] | None], int]


def command(main: Main) -> Main:
    """Turns user errors into one message and exit status 2, and prints what the library logs."""

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        try:
            with printed_logs():
                return main(argv)
        except MENDABLE as error:
            print(f"error: {error}", file=sys.stderr)
            return 2

    return run


@contextmanager
def printed_logs() -> Iterator[None]:
    """Prints the library's log messages as they come."""
    logger = logging.getLogger("keras_deeplab")
    handler, level = logging.StreamHandler(sys.stdout), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class Parser(argparse.ArgumentParser):
    """A command line whose errors are one line, with the option or value that may be meant.

    Args:
        hints: What to say to options that there are not, by the `names.key` of each.
        **settings: Of `argparse.ArgumentParser`.
    """

    def __init__(self, hints: Mapping[str, str] | None = None, **settings: Any) -> None:
        settings.setdefault("formatter_class", argparse.ArgumentDefaultsHelpFormatter)
        super().__init__(**settings)
        self.hints = hints or {}

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses the arguments; an unknown option is said first, whatever else is wrong."""
        for text in sys.argv[1:] if args is None else args:
            name = text.partition("=")[0]
            if name == "--":
                break
            known = any(option.startswith(name) for option in self._option_string_actions)
            if name.startswith("-") and not known and not _is_number(name):
                self.error(f"There is no option {name}.{self._instead(names.key(name))}")
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Ends the process with the message, and without the usage of twenty lines."""
        self.exit(2, f"error: {message}{'' if message[-1] in '.?' else '.'} See --help.\n")

    def _instead(self, key: str) -> str:
        """What to write in place of an option, as a sentence."""
        own = {names.key(text): text for text in self._option_string_actions if text[:2] == "--"}
        others = {key: text for key, text in OTHER_NAMES.items() if text in own.values()}
        meant = {key: f"Did you mean {text}?" for key, text in {**others, **own}.items()}
        said = {**NO_OPTIONS, **self.hints, **meant}
        close = difflib.get_close_matches(key, said, n=1, cutoff=0.58)
        return f" {said[close[0]]}" if close else ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def positive(text: str) -> int:
    """A positive integer from the command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1. Received: {text!r}")
    return int(text)


def positive_float(text: str) -> float:
    """A positive number from the command line."""
    if not _is_number(text) or not 0 < float(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number. Received: {text!r}")
    return float(text)


def one_of(choices: Iterable[str]) -> dict[str, Any]:
    """Arguments of `add_argument` for an option that takes one of these names, in any spelling."""
    known = tuple(choices)

    def find(text: str) -> str:
        found = names.find(text, known)
        if found is None:
            raise argparse.ArgumentTypeError(
                f"must be one of {', '.join(known)}. Received: {text!r}."
                f"{names.suggestion(text, known)}"
            )
        return found

    return {"type": find, "choices": known}


class Size(argparse.Action):
    """Height and width, or one number for a square."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        """Stores them."""
        if len(values) > 2:
            parser.error(f"argument {option}: must be one or two numbers. Received: {values}")
        setattr(namespace, self.dest, [values[0], values[-1]])


SIZE = {"type": positive, "nargs": "+", "action": Size, "metavar": ("H", "W")}


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
