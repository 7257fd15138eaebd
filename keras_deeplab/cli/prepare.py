"""`keras-deeplab prepare`: a data set in the format of TensorFlow Datasets."""

from __future__ import annotations

import argparse

from keras_deeplab import data
from keras_deeplab.cli.options import DATA, Parser, command, file_path, one_of, positive


def parser() -> Parser:
    """Returns the parser of the command line."""
    made = Parser(
        "Writes a data set in the format of TensorFlow Datasets, as few large files. "
        "Train from it with --data tfds:FOLDER. After an interruption, the same command continues."
    )
    made.add_argument("--data", required=True, help=DATA)
    made.add_argument("--output", type=file_path, required=True, help="folder to write")
    formats = one_of(("tfrecord", "array_record"))
    made.add_argument("--file-format", **formats, default="tfrecord", help="of the shards")
    made.add_argument("--images-per-shard", type=positive, default=1000, help="at most")
    return made


@command(parser)
def main(options: argparse.Namespace) -> None:
    """Runs the command."""
    output = data.prepare(
        data.open_source(options.data),
        options.output,
        file_format=options.file_format,
        images_per_shard=options.images_per_shard,
    )
    print(f"Use it with --data tfds:{output}")
