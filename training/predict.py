"""Labels photographs: `python -m training.predict --model FILE --images FILES --output FOLDER`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import keras_deeplab
from keras_deeplab.data import IMAGE_SUFFIXES, DatasetInfo, voc_colors
from training.files import write_png
from training.options import add_views, command, load_model, positive, with_views


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m training.predict",
        description="Writes NAME_labels.png (class numbers) and NAME_overlay.png for each image.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
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
    info = classes_of(options.model, model.output_shape[-1])
    for path in paths:
        pixels = keras_deeplab.inference.read_image(path, model.input_shape[-1])
        labels = keras_deeplab.predict(model, pixels)
        write_png(options.output / f"{path.stem}_labels.png", labels)
        overlay = keras_deeplab.overlay(pixels, labels, info.colors)
        write_png(options.output / f"{path.stem}_overlay.png", overlay)
        print(f"{path.name}: {shares(labels, info)}")
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


def classes_of(model: Path, num_classes: int) -> DatasetInfo:
    """Names and colours that training stored beside the model, or numbers and default colours."""
    stored = model.with_name("dataset.json")
    if stored.exists():
        info = DatasetInfo.from_dict(json.loads(stored.read_text()))
        if info.num_classes == num_classes:
            return info
    return DatasetInfo(tuple(map(str, range(num_classes))), voc_colors(num_classes))


def shares(labels: np.ndarray, info: DatasetInfo) -> str:
    """The classes in a label map, the largest first."""
    counts = np.bincount(labels.ravel(), minlength=info.num_classes) / labels.size
    order = [index for index in np.argsort(-counts) if counts[index] > 0]
    return ", ".join(f"{info.classes[index]} {counts[index]:.0%}" for index in order)


if __name__ == "__main__":
    raise SystemExit(main())
