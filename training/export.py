"""Exports a SavedModel: `python -m training.export --model FILE --output FOLDER`."""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file, for which Python looks for packages beside it alone
    sys.path[0] = str(Path(__file__).parents[1])
    runpy.run_module("training.export", run_name="__main__")

import keras_deeplab
from keras_deeplab.cli.options import Parser, command, load_model, positive


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = Parser(
        prog="python -m training.export",
        description="Writes a SavedModel, and compares it with the model before it is put there.",
    )
    add = made.add_argument
    add("--model", type=Path, required=True, help=".keras file")
    add("--output", type=Path, required=True, help="folder to write")
    add("--output-stride", type=positive, help="default: the model's own")
    add(
        "--max-pixels",
        type=positive,
        help="largest number of pixels of a request; default: 2^24, or what the model's fixed size "
        "needs",
    )
    add("--overwrite", action="store_true", help="replace a SavedModel that is there")
    return made


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command."""
    options = parser().parse_args(argv)
    model = load_model(options.model, options.output_stride)
    path = keras_deeplab.export.saved_model(
        model, options.output, overwrite=options.overwrite, max_pixels=options.max_pixels
    )
    print(f"written to {path}: it answers as the model does")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
