"""`keras-deeplab convert FILE --output model.keras`: weights of other packages as a model."""

from __future__ import annotations

import argparse

import keras_deeplab
from keras_deeplab.cli.options import Parser, command, file_path, positive
from keras_deeplab.files import atomic_write, stored_bytes
from keras_deeplab.validation import error


def parser() -> Parser:
    """Returns the parser of the command line."""
    made = Parser("Builds the model that a checkpoint belongs to, and writes it as .keras file.")
    add = made.add_argument
    add(
        "weights",
        help="torch, safetensors, TensorFlow, LiteRT or Keras file, or the name of published "
        "weights as NAME/MODEL/BACKBONE",
    )
    add("--output", type=file_path, required=True, help=".keras file to write")
    add("--output-stride", type=positive, help="default: that of the file")
    add(
        "--num-classes", type=positive, help="default: those of the file; otherwise a new predictor"
    )
    add("--moving-averages", action="store_true", help="load those of TensorFlow 1 and torch files")
    add("--overwrite", action="store_true", help="replace an existing file")
    return made


@command(parser)
def main(options: argparse.Namespace) -> None:
    """Runs the command."""
    if options.output.suffix != ".keras":
        raise error("--output", "a path that ends in .keras", str(options.output))
    if options.output.exists() and not options.overwrite:
        raise error("--output", "a new file", str(options.output), "Use --overwrite to replace it.")
    arguments = {"output_stride": options.output_stride, "num_classes": options.num_classes}
    model = keras_deeplab.from_pretrained(
        options.weights,
        moving_averages=options.moving_averages,
        **{name: value for name, value in arguments.items() if value is not None},
    )
    with atomic_write(options.output, stored_bytes(model)) as path:
        model.save(path)
    parameters = f"{model.count_params():,} parameters"
    print(f"Wrote {options.output}: a {type(model).__name__} of {parameters}")
