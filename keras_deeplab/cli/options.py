"""Options that several commands share, and user errors printed without a traceback."""

from __future__ import annotations

import argparse
import functools
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NoReturn, TextIO

import keras
import tensorflow as tf

import keras_deeplab
from keras_deeplab import names, validation
from keras_deeplab.data import DatasetInfo
from keras_deeplab.data.source import reason
from keras_deeplab.files import write_json, write_text
from keras_deeplab.inference import logits_spec
from keras_deeplab.models.multi_scale import unwrapped, with_test_time_augmentation
from keras_deeplab.prediction import stored_info
from keras_deeplab.runtimes import ExportedModel, is_exported, open_exported
from keras_deeplab.trainer import next_free
from keras_deeplab.weights.hub import is_address, local_path

logger = logging.getLogger(__name__)

# Sentences for options that do not exist, by `names.key` of the option.
HINTS = {"numclasses": "The number of classes is that of the data set or the model."}

# An ImportError names the extra package that is missing.
USER_ERRORS = (
    *(ValueError, OSError, ImportError, MemoryError),
    *(tf.errors.ResourceExhaustedError, keras_deeplab.export.ExportError),
)

BAR = "\N{BOX DRAWINGS HEAVY HORIZONTAL}"  # of which Keras draws progress

Main = Callable[[argparse.Namespace], int | None]


class _Output:
    """The standard output. When nobody reads it any more, as after `| head -1`, commands go on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._has_bars = True
        try:
            BAR.encode(getattr(stream, "encoding", None) or "utf-8")
        except UnicodeEncodeError:  # such as of a file on Windows
            self._has_bars = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._muted_when_unread():
            self._stream.write(text if self._has_bars else text.replace(BAR, "="))
        return len(text)

    def flush(self) -> None:
        with self._muted_when_unread():
            self._stream.flush()

    @contextmanager
    def _muted_when_unread(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


def command(parser: Callable[[], Parser]) -> Callable[[Main], Callable[..., int]]:
    """Makes a command of a function of its options, whose exit status is 0 if it returns None.

    In `keras_deeplab.cli` its name is that of its module. User errors are printed as
    `error: MESSAGE` with exit status 2, and the library's log is printed.
    """

    def of_options(main: Main) -> Callable[..., int]:
        @functools.wraps(main)
        def run(argv: Sequence[str] | None = None) -> int:
            for stream in (sys.stdout, sys.stderr):  # names may have any characters
                if hasattr(stream, "reconfigure"):
                    stream.reconfigure(errors="backslashreplace")
            output = _Output(sys.stdout)
            logger = logging.getLogger("keras_deeplab")
            handler = logging.StreamHandler(output)
            level, propagate = logger.level, logger.propagate
            logger.addHandler(handler)
            logger.setLevel(logging.INFO)
            logger.propagate = False  # other libraries add a handler to the root logger
            try:
                made = parser()
                package, _, name = main.__module__.rpartition(".")
                if package == "keras_deeplab.cli":
                    made.prog = f"keras-deeplab {name.replace('_', '-')}"
                with redirect_stdout(output):
                    return main(made.parse_args(argv)) or 0
            except tf.errors.InvalidArgumentError as raised:
                if "ValueError: " not in raised.message:
                    raise
                print(f"error: {reason(raised)}", file=sys.stderr)  # a file changed after the audit
                return 2
            except USER_ERRORS as raised:
                print(f"error: {raised}", file=sys.stderr)
                return 2
            except KeyboardInterrupt:
                print("\nInterrupted.", file=sys.stderr)
                return 130
            finally:
                logger.removeHandler(handler)
                logger.setLevel(level)
                logger.propagate = propagate

        return run

    return of_options


class _Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults that are set."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        unset = action.default is None or action.default is False or action.default == []
        return action.help if unset else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, with the option or value that may be meant.

    `hints` are those of a command besides `HINTS`.
    """

    def __init__(
        self, description: str = "", hints: Mapping[str, str] | None = None, **settings: Any
    ) -> None:
        super().__init__(description=description, formatter_class=_Defaults, **settings)
        self.hints = {**HINTS, **(hints or {})}

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses the arguments; an unknown option is reported before all other errors."""
        for text in sys.argv[1:] if args is None else args:
            name = text.partition("=")[0]
            if name == "--":
                break
            known = any(option.startswith(name) for option in self._option_string_actions)
            if re.match("--?[a-zA-Z]", name) and not known:
                key, options = names.key(name), self._option_string_actions
                hint = None if names.match(name, options) else self.hints.get(key)
                if key in {action.dest for action in self._get_positional_actions()}:
                    hint = f"Give the {key} alone: {self.prog} {key.upper()}."
                meant = names.suggestion(name, options)
                self.error(f"There is no option {name}. {hint or meant.strip()}")
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Exits with the message, without argparse's usage of twenty lines."""
        message = message.strip()
        self.exit(2, f"error: {message}{'' if message[-1] in '.?' else '.'} See --help.\n")


def positive(text: str) -> int:
    """A positive integer from the command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1. Received: {text!r}")
    return int(text)


def one_of(choices: Iterable[str]) -> dict[str, Any]:
    """Arguments of `add_argument` for an option that takes one of these names, in any spelling."""
    known = tuple(choices)

    def match(text: str) -> str:
        found = names.match(text, known)
        if found is None:
            message = f"must be one of {', '.join(known)}. Received: {text!r}."
            raise argparse.ArgumentTypeError(message + names.suggestion(text, known))
        return found

    return {"type": match, "choices": known}


def file_path(text: str) -> Path:
    """The path of a file or folder; a shell leaves the `~` of `--option=~/file`."""
    return Path(os.path.expanduser(text))


def write(path: Path | None, make: Callable[[], Any]) -> None:
    """Writes a text or JSON, which is made only where the option of its file is set."""
    if path is not None:
        content = make()
        (write_text if isinstance(content, str) else write_json)(path, content)
        print(f"Wrote {path}")


# What an option of a data set takes.
DATA = "'shapes', a folder, a list of files, or a reader with a path (voc:PATH); see docs/data.md"

FILE = {"type": file_path, "metavar": "FILE"}
# One number for a square, or two, for `height_and_width`.
SIZE = {"type": positive, "nargs": "+", "metavar": ("H", "W")}


def height_and_width(values: Sequence[int]) -> tuple[int, int]:
    """Returns the value of an option `SIZE`."""
    if len(values) > 2:
        raise ValueError(f"A size must be one or two numbers. Received: {values}")
    return values[0], values[-1]


def run_folder(
    options: argparse.Namespace, model: str, backbone: str, resumes: bool = True
) -> Path:
    """The folder of a run: `--output`, or one in `runs`, new or to be resumed."""
    data = re.sub(r"[:?&=%\[\]]+", "-", Path(options.data).resolve().name).strip("-")
    name = f"{data}-{model}-{backbone}"
    return options.output or next_free(Path("runs") / name, resumes)


def model_path(text: str) -> Path | str:
    """The path of a model, or its address on the Hub, which is downloaded when it is loaded."""
    return text if is_address(text) else file_path(text)


def add_model(parser: argparse.ArgumentParser, exported: bool = False) -> None:
    """Adds the options of a command that uses a model, or with `exported` also an export."""
    more = " or an export: folder of a SavedModel, .tflite or .onnx file" if exported else ""
    text = f".keras file, hf://USER/NAME[@REVISION] of the Hugging Face Hub{more}"
    parser.add_argument("--model", type=model_path, required=True, help=text)
    parser.add_argument("--output-stride", type=positive, help="default: the model's own")
    add_test_time_augmentation(parser)


def load_model(options: argparse.Namespace) -> keras.Model:
    """Loads the model as the options of `add_model` are set; an address becomes a path there."""
    options.model = local_path(options.model)
    model = keras_deeplab.load_model(options.model, compile=False)
    model = at_output_stride(model, options)
    return with_test_time_augmentation(model, options.scales, options.flip)


def at_output_stride(model: keras.Model, options: argparse.Namespace) -> keras.Model:
    """Returns the model at the output stride of the options, if they have one."""
    if options.output_stride is None:
        return model
    if "output_stride" not in unwrapped(model).get_config():
        rule = f"left out: {options.model} has none to choose"
        raise validation.error("--output-stride", rule, options.output_stride)
    return model.with_output_stride(options.output_stride)


def load_model_or_export(options: argparse.Namespace) -> keras.Model | ExportedModel:
    """Loads the model, or opens the export, whose options are those that it was made with."""
    if is_address(options.model) or not is_exported(options.model):
        return load_model(options)
    own = ("output_stride", "scales", "flip")
    check_left_out(options, own, "for an export: export with it")
    return open_exported(options.model)


def check_left_out(options: argparse.Namespace, names: Iterable[str], where: str) -> None:
    """Raises an error if one of some options is set that have no effect there."""
    for name in names:
        if value := getattr(options, name):
            option = f"--{name.replace('_', '-')}"
            raise validation.error(option, f"left out {where}", value)


def add_crf(parser: argparse.ArgumentParser) -> None:
    """Adds the option of a CRF after the model."""
    parser.add_argument(
        "--crf",
        nargs="?",
        const="v2",
        metavar="v1|v2|FILE",
        help="refine the probabilities with a dense CRF: constants of DeepLab v1 or v2 (default), "
        "or a JSON file of them",
    )


def info_of(options: argparse.Namespace, model: keras.Model | ExportedModel) -> DatasetInfo | None:
    """Returns the names and colours that `--model` has: inside an export, or beside its file."""
    if isinstance(model, ExportedModel):
        return model.metadata.info
    return stored_info(options.model, logits_spec(model)[1])


def check_classes(
    options: argparse.Namespace, model: keras.Model | ExportedModel, classes: Sequence[str]
) -> DatasetInfo | None:
    """Returns the names that `--model` has, or raises an error if they are not those of `--data`.

    Names that differ in more than their order are a warning: they may be translated.
    """
    predicted = logits_spec(model)[1]
    if predicted != len(classes):
        raise ValueError(
            f"{options.model} predicts {predicted} classes, but {options.data} has "
            f"{len(classes)}: {', '.join(classes)}."
        )
    info = info_of(options, model)
    if info is not None and info.classes != tuple(classes):
        text = f"predicts {', '.join(info.classes)}; {options.data} has {', '.join(classes)}"
        if sorted(info.classes) == sorted(classes):
            raise ValueError(f"{options.model} {text}: the same classes in another order.")
        logger.warning("%s %s: compared by their order.", options.model, text)
    return info


def add_test_time_augmentation(group: argparse._ActionsContainer, prefix: str = "") -> None:
    """Adds the options of test-time augmentation, whose names begin with a prefix."""
    group.add_argument(
        f"--{prefix}scales",
        type=float,
        nargs="+",
        metavar="S",
        help="mean of the probabilities at these scales of the image, such as 0.5 0.75 1 1.25 1.5 "
        "1.75 as in the papers, in place of the model's own; 1 for the network alone",
    )
    flip = "also predict the image mirrored left to right, which takes twice as long"
    group.add_argument(f"--{prefix}flip", action="store_true", help=flip)
