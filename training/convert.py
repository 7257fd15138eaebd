"""Converts weights of other packages: `python -m training.convert FILE --output model.keras`."""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file, for which Python looks for packages beside it alone
    sys.path[0] = str(Path(__file__).parents[1])
    runpy.run_module("training.convert", run_name="__main__")

import keras_deeplab
from keras_deeplab.cli.options import Parser, command, positive
from keras_deeplab.files import atomic_write, stored_bytes


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = Parser(
        prog="python -m training.convert",
        description="Builds the model that a file of weights makes up, and writes it as .keras.",
    )
    add = made.add_argument
    add(
        "weights",
        help="torch, safetensors, TensorFlow, LiteRT or Keras file, or the name of published "
        "weights as NAME/MODEL/BACKBONE",
    )
    add("--output", type=Path, required=True, help=".keras file to write")
    add("--output-stride", type=positive, help="default: that of the file")
    add("--classes", type=positive, help="default: those of the file; otherwise a new predictor")
    add("--moving-averages", action="store_true", help="of TensorFlow 1 and torch: take them")
    add("--overwrite", action="store_true", help="replace a file that is there")
    return made


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command."""
    options = parser().parse_args(argv)
    if options.output.suffix != ".keras":
        raise ValueError(f"--output must end in .keras, received {str(options.output)!r}.")
    if options.output.exists() and not options.overwrite:
        raise ValueError(f"--output: {options.output} is there; say --overwrite to replace it.")
    arguments = {"output_stride": options.output_stride, "num_classes": options.classes}
    model = keras_deeplab.from_pretrained(
        options.weights,
        moving_averages=options.moving_averages,
        **{name: value for name, value in arguments.items() if value is not None},
    )
    with atomic_write(options.output, stored_bytes(model)) as aside:
        model.save(aside)
    count = f"{model.count_params():,} parameters"
    print(f"written to {options.output}: a {type(model).__name__} of {count}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
