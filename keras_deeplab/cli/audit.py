"""`keras-deeplab audit FOLDER`: every file of a data set checked."""

from __future__ import annotations

from collections.abc import Sequence

from keras_deeplab import data
from keras_deeplab.cli.options import DATA, Parser, command


def parser() -> Parser:
    """Returns the parser of the command line."""
    made = Parser(
        prog="keras-deeplab audit",
        description="Decodes every image and label map of a data set. Prints sizes and class "
        "shares, or all errors with exit status 2.",
    )
    made.add_argument("data", help=DATA)
    made.add_argument("--splits", nargs="+", help="default: all")
    return made


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command."""
    options = parser().parse_args(argv)
    print(data.audit(data.open_source(options.data), options.splits))
    return 0
