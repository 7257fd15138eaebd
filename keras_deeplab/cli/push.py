"""`keras-deeplab push --run FOLDER --repo USER/NAME`: a model to the Hugging Face Hub."""

from __future__ import annotations

import argparse

import keras_deeplab
from keras_deeplab.cli.options import Parser, command, file_path


def parser() -> Parser:
    """Returns the parser of the command line."""
    made = Parser(
        "Uploads model.keras, README.md, dataset.json, metrics.json and "
        "predictions.png of a run to the Hugging Face Hub, and no other file. Log in with "
        "`hf auth login`."
    )
    add = made.add_argument
    add("--run", type=file_path, required=True, help="folder of the run")
    add("--repo", required=True, metavar="USER/NAME", help="repository; created if there is none")
    add("--public", action="store_true", help="everyone may see it; default: only you")
    return made


@command(parser)
def main(options: argparse.Namespace) -> None:
    """Runs the command."""
    address = keras_deeplab.push_to_hub(options.run, options.repo, private=not options.public)
    print(f"Uploaded {address}")
