"""`keras-deeplab card --run FOLDER --license ID`: the model card of a run."""

from __future__ import annotations

import argparse

import keras_deeplab
from keras_deeplab.cli.options import Parser, command, file_path, write
from keras_deeplab.trainer import RunFolder
from keras_deeplab.upload import CARD
from keras_deeplab.validation import error


def parser() -> Parser:
    """Returns the parser of the command line."""
    made = Parser(
        "Writes README.md into the folder of a finished run: figures, data, licence "
        "and how to load the model. Complete it before you share the model."
    )
    add = made.add_argument
    add("--run", type=file_path, required=True, help="folder of the run")
    add("--license", required=True, help="identifier such as apache-2.0, cc-by-4.0 or other")
    add("--repo", metavar="USER/NAME", help="repository of the Hugging Face Hub to load it from")
    add("--data", help="name of the data set; default: that in run.json")
    add("--overwrite", action="store_true", help="replace an existing README.md")
    return made


@command(parser)
def main(options: argparse.Namespace) -> None:
    """Runs the command."""
    folder = RunFolder(options.run)
    path = folder.path / CARD
    if path.exists() and not options.overwrite:
        rule = f"a folder without {CARD}"
        raise error("--run", rule, str(options.run), "Use --overwrite to replace it.")
    model = keras_deeplab.load_model(folder.best_model, compile=False)
    text = keras_deeplab.card(
        model, options.run, license=options.license, repo=options.repo, data=options.data
    )
    write(path, lambda: text)
