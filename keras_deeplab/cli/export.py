"""`keras-deeplab export --model FILE --output FOLDER`: a verified SavedModel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import keras_deeplab
from keras_deeplab.cli.options import Parser, add_model, command, load_model, positive


def parser() -> Parser:
    """Returns the parser of the command line."""
    made = Parser(
        prog="keras-deeplab export",
        description="Writes a SavedModel after comparing its outputs with the model's.",
    )
    add_model(made)
    add = made.add_argument
    add("--output", type=Path, required=True, help="folder to write")
    add(
        "--max-pixels",
        type=positive,
        help="largest number of pixels of a request; default: 2^24, or what the model's fixed size "
        "needs",
    )
    add("--overwrite", action="store_true", help="replace an existing SavedModel")
    return made


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command."""
    options = parser().parse_args(argv)
    model = load_model(options)
    path = keras_deeplab.export.saved_model(
        model, options.output, overwrite=options.overwrite, max_pixels=options.max_pixels
    )
    print(f"Wrote {path}")
    return 0
