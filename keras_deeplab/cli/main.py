"""The `keras-deeplab` command, which runs the others."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

import keras_deeplab
from keras_deeplab.cli.options import Parser, one_of

# The module of each command, imported when it runs, and what it does.
COMMANDS = {
    "train": ("keras_deeplab.cli.train", "train a segmentation model, evaluate it and export it"),
    "evaluate": ("keras_deeplab.cli.evaluate", "compute the scores of a model on a data set"),
    "predict": ("keras_deeplab.cli.predict", "predict label maps of images"),
    "export": ("keras_deeplab.cli.export", "write a SavedModel"),
    "convert": ("keras_deeplab.cli.convert", "convert weights of other packages to a .keras file"),
    "audit": ("keras_deeplab.cli.audit", "check every file of a data set"),
    "train-classifier": ("keras_deeplab.cli.train_classifier", "train an SPP-net"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that the first argument names, with the others."""
    first, *others = (sys.argv[1:] if argv is None else argv) or ["--help"]
    width = max(map(len, COMMANDS))
    parser = Parser(
        prog="keras-deeplab",
        usage="keras-deeplab COMMAND [OPTIONS]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Commands (keras-deeplab COMMAND --help describes their options):\n\n"
        + "\n".join(f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items()),
    )
    parser.add_argument("--version", action="version", version=keras_deeplab.__version__)
    parser.add_argument("command", help=argparse.SUPPRESS, **one_of(COMMANDS))
    module, _ = COMMANDS[parser.parse_args([first]).command]
    return importlib.import_module(module).main(others)
