"""`keras-deeplab compare RUN RUN ...`: runs side by side."""

from __future__ import annotations

import argparse

from keras_deeplab.cli.options import FILE, Parser, command, file_path, write
from keras_deeplab.trainer import compare


def parser() -> Parser:
    """Returns the parser of the command line."""
    made = Parser("Prints scores, time and differing settings of runs, finished or not.")
    made.add_argument("runs", nargs="+", type=file_path, help="folders of runs")
    made.add_argument("--html", **FILE, help="write a page with curves too")
    return made


@command(parser)
def main(options: argparse.Namespace) -> None:
    """Runs the command."""
    comparison = compare(options.runs)
    print(comparison)
    write(options.html, comparison.html)
