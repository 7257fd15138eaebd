"""Labels photographs: `python -m training.predict --model FILE --images FILES --output FOLDER`."""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file, for which Python looks for packages beside it alone
    sys.path[0] = str(Path(__file__).parents[1])
    runpy.run_module("training.predict", run_name="__main__")

import numpy as np

import keras_deeplab
from keras_deeplab.cli.options import Parser, add_views, command, load_model, positive, with_views
from keras_deeplab.data import IMAGE_SUFFIXES, DatasetInfo, voc_colors
from keras_deeplab.data.orientation import UPRIGHT
from keras_deeplab.files import read_json, write_png

Color = tuple[int, int, int]
WITHOUT_NAMES = "Restore it, or delete it to have numbers in place of the classes' names."


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = Parser(
        prog="python -m training.predict",
        description="Writes NAME_labels.png (class numbers) and NAME_overlay.png for each image.",
    )
    add = made.add_argument
    add("--model", type=Path, required=True, help=".keras file")
    add("--images", type=Path, nargs="+", required=True, help="photographs, or folders of them")
    add("--output", type=Path, default=Path("predictions"), help="folder to write to")
    add("--output-stride", type=positive, help="default: the model's own")
    add_views(made)
    return made


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command."""
    options = parser().parse_args(argv)
    paths = photographs(options.images)
    model = load_model(options.model, options.output_stride)
    model = with_views(model, options.scales, options.flip)
    names, colors = classes_of(options.model, model.output_shape[-1])
    for path in paths:
        picture = keras_deeplab.inference.open_picture(path, model.input_shape[-1])
        pixels = picture.upright
        labels = keras_deeplab.predict(model, pixels)
        sample = np.uint8 if len(names) <= 256 else np.uint16
        write_png(options.output / f"{path.stem}_labels.png", labels.astype(sample))
        overlay = keras_deeplab.overlay(pixels, labels, colors, ignore_label=None)
        write_png(options.output / f"{path.stem}_overlay.png", overlay)
        turned = picture.facts.orientation != UPRIGHT
        done = " (turned by its EXIF orientation)" if turned else ""
        print(f"{path.name}{done}: {shares(labels, names)}")
    print(f"{len(paths)} images written to {options.output}")
    return 0


def photographs(given: Sequence[Path]) -> list[Path]:
    """All files given, those in folders included; an error lists what is missing."""
    found: list[Path] = []
    for path in given:
        inside = sorted(p for p in path.iterdir() if is_photograph(p)) if path.is_dir() else [path]
        if not inside:
            raise ValueError(f"{path} holds no photographs ({', '.join(IMAGE_SUFFIXES)}).")
        found += inside
    missing = [str(path) for path in found if not path.is_file()]
    if missing:
        raise ValueError(f"--images: no such file, or not a regular one: {', '.join(missing)}.")
    stems = [path.stem for path in found]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise ValueError(f"--images: several files would be written as {', '.join(twice)}.")
    return found


def is_photograph(path: Path) -> bool:
    """Whether a file in a folder is one; hidden files, which some systems leave, are not."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def classes_of(model: Path, num_classes: int) -> tuple[Sequence[str], Sequence[Color]]:
    """Names and colours that training stored beside the model, or numbers and default colours.

    Raises:
        ValueError: If what was stored is damaged, with the path.
    """
    stored = model.with_name("dataset.json")
    if os.path.lexists(stored):
        content = read_json(stored, WITHOUT_NAMES)
        try:
            info = DatasetInfo.from_dict(content)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{stored}: {error}. {WITHOUT_NAMES}") from error
        if info.num_classes == num_classes:
            return info.classes, info.colors
        print(f"{stored} has {info.num_classes} classes, the model {num_classes}: not used.")
    return tuple(map(str, range(num_classes))), voc_colors(num_classes)


def shares(labels: np.ndarray, names: Sequence[str]) -> str:
    """The classes in a label map, the largest first."""
    counts = np.bincount(labels.ravel(), minlength=len(names)) / labels.size
    order = [index for index in np.argsort(-counts) if counts[index] > 0]
    return ", ".join(f"{names[index]} {counts[index]:.0%}" for index in order)


if __name__ == "__main__":
    raise SystemExit(main())
