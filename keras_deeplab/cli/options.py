"""Options that several commands share, and errors as one line."""

from __future__ import annotations

import argparse
import difflib
import functools
import logging
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import keras

import keras_deeplab
from keras_deeplab import names, validation
from keras_deeplab.models.multi_scale import with_test_time_augmentation

# Options of other tools, and what to suggest in place of options that no command has.
OTHER_NAMES = {
    "lr": "--learning-rate",
    "bs": "--batch-size",
    "checkpoint": "--weights",
    "pretrained": "--weights",
    "numclasses": "--classes",
}
HINTS = {"numclasses": "The number of classes is that of the data set or the model."}

# An ImportError names the extra package that is missing.
USER_ERRORS = (ValueError, OSError, ImportError, MemoryError, keras_deeplab.export.ExportError)

Main = Callable[[Sequence[str] | None], int]


def command(main: Main) -> Main:
    """Turns user errors into one message and exit status 2, and prints the library's log."""

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        logger = logging.getLogger("keras_deeplab")
        handler, level = logging.StreamHandler(sys.stdout), logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False  # other libraries add a handler to the root logger
        try:
            return main(argv)
        except USER_ERRORS as raised:
            print(f"error: {raised}", file=sys.stderr)
            return 2
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = True

    return run


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, with the option or value that may be meant.

    `hints` are sentences for options that do not exist, by `names.key` of the option.
    """

    def __init__(self, hints: Mapping[str, str] | None = None, **settings: Any) -> None:
        settings.setdefault("formatter_class", argparse.ArgumentDefaultsHelpFormatter)
        super().__init__(**settings)
        self.hints = {**HINTS, **(hints or {})}

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses the arguments; an unknown option is reported before all other errors."""
        for text in sys.argv[1:] if args is None else args:
            name = text.partition("=")[0]
            if name == "--":
                break
            known = any(option.startswith(name) for option in self._option_string_actions)
            if re.match("--?[a-zA-Z]", name) and not known:
                self.error(f"There is no option {name}.{self._suggestion(names.key(name))}")
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Exits with the message, without argparse's usage of twenty lines."""
        self.exit(2, f"error: {message}{'' if message[-1] in '.?' else '.'} See --help.\n")

    def _suggestion(self, key: str) -> str:
        """A sentence on what to use in place of an unknown option."""
        own = {names.key(text): text for text in self._option_string_actions if text[:2] == "--"}
        others = {key: text for key, text in OTHER_NAMES.items() if text in own.values()}
        meant = {key: f"Did you mean {text}?" for key, text in {**others, **own}.items()}
        sentences = {**self.hints, **meant}
        close = difflib.get_close_matches(key, sentences, n=1, cutoff=0.58)
        return f" {sentences[close[0]]}" if close else ""


def positive(text: str) -> int:
    """A positive integer from the command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1. Received: {text!r}")
    return int(text)


def positive_float(text: str) -> float:
    """A positive number from the command line."""
    try:
        return validation.positive("value", float(text))
    except ValueError:
        message = f"must be a positive number. Received: {text!r}"
        raise argparse.ArgumentTypeError(message) from None


def one_of(choices: Iterable[str]) -> dict[str, Any]:
    """Arguments of `add_argument` for an option that takes one of these names, in any spelling."""
    known = tuple(choices)

    def match(text: str) -> str:
        found = names.match(text, known)
        if found is None:
            raise argparse.ArgumentTypeError(
                f"must be one of {', '.join(known)}. Received: {text!r}."
                f"{names.suggestion(text, known)}"
            )
        return found

    return {"type": match, "choices": known}


# One number for a square, or two, for `height_and_width`.
SIZE = {"type": positive, "nargs": "+", "metavar": ("H", "W")}


def height_and_width(values: Sequence[int]) -> tuple[int, int]:
    """Returns the value of an option `SIZE`."""
    if len(values) > 2:
        raise ValueError(f"A size must be one or two numbers. Received: {values}")
    return values[0], values[-1]


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds the options of a command that uses a model."""
    parser.add_argument("--model", type=Path, required=True, help=".keras file")
    parser.add_argument("--output-stride", type=positive, help="default: the model's own")
    add_test_time_augmentation(parser)


def load_model(options: argparse.Namespace) -> keras.Model:
    """Loads the model as the options of `add_model` are set."""
    model = keras_deeplab.load_model(options.model, compile=False)
    if options.output_stride is not None:
        network = model
        while isinstance(network, keras_deeplab.MultiScale):
            network = network.model
        if not hasattr(network, "with_output_stride"):
            rule = f"left out for a {type(network).__name__}"
            raise validation.error("--output-stride", rule, options.output_stride)
        model = model.with_output_stride(options.output_stride)
    return with_test_time_augmentation(model, options.scales, options.flip)


def add_test_time_augmentation(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup,
) -> None:
    """Adds the options of test-time augmentation."""
    parser.add_argument(
        "--scales",
        type=positive_float,
        nargs="+",
        metavar="S",
        help="mean of the probabilities at these scales of the image, such as 0.5 0.75 1 1.25 1.5 "
        "1.75 as in the papers; default: 1",
    )
    parser.add_argument(
        "--flip",
        action="store_true",
        help="also predict the image mirrored left to right, which takes twice as long",
    )
