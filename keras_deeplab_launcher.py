"""The command `keras-deeplab`: runs one of the commands in `keras_deeplab.cli`.

It is outside the package, because importing any module of the package imports TensorFlow, which
takes seconds and prints messages.
"""

from __future__ import annotations

import atexit
import difflib
import glob
import importlib
import os
import platform
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

# Each has a module of its name in `keras_deeplab.cli`.
COMMANDS = {
    "train": "train a segmentation model, evaluate it and export it",
    "tune": "search the learning rate and other values of a recipe",
    "evaluate": "compute the scores of a model on a data set",
    "compare": "compare the scores, curves and settings of runs",
    "predict": "predict label maps of images",
    "demo": "open a local web page that predicts photographs and the webcam",
    "export": "write a model for TensorFlow, LiteRT or ONNX",
    "convert": "convert weights of other packages to a .keras file",
    "analyze": "report receptive fields and live kernel taps of a model",
    "audit": "check every file of a data set",
    "prepare": "write a data set in the format of TensorFlow Datasets",
    "card": "write the model card of a run",
    "push": "upload a model to the Hugging Face Hub",
    "train-classifier": "train an SPP-net",
}

# TensorFlow writes these lines before it reads TF_CPP_MIN_LOG_LEVEL (tensorflow issue 100442).
# CUDA's error 303 is that there is no driver, as on every machine without a GPU.
_MESSAGES = re.compile(
    rb"[IW]\d{4} |WARNING: All log messages before absl::InitializeLog|E\d{4} .*cuInit.*\(303\)$"
)

NVIDIA_GPUS = "/dev/nvidia[0-9]*"  # on Linux, also in a container that was given them


def import_tensorflow() -> None:
    """Imports TensorFlow and lists the devices; of the messages only errors are printed.

    A GPU that TensorFlow does not use is a warning. oneDNN is on also where TensorFlow leaves it
    off, on x86 processors without AVX-512: a training step takes half the time there.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")  # whatever Keras' configuration file names
    if platform.machine() in ("x86_64", "AMD64"):
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    with _errors_alone():
        import tensorflow as tf

        devices = tf.config.list_physical_devices()
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    used = any(device.device_type == "GPU" for device in devices)
    if glob.glob(NVIDIA_GPUS) and not hidden and not used:
        text = "TensorFlow does not use the GPU of this machine: pip install 'tensorflow[and-cuda]'"
        print(f"warning: {text}", file=sys.stderr)


@contextmanager
def _errors_alone() -> Iterator[None]:
    """Leaves other messages of TensorFlow out, unless no temporary file can hold them."""
    try:
        captured = tempfile.TemporaryFile()  # noqa: SIM115
    except OSError:
        yield
        return
    sys.stderr.flush()
    with captured:
        stderr = os.dup(2)
        os.dup2(captured.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            captured.seek(0)
            os.write(2, b"".join(line for line in captured if not _MESSAGES.match(line)))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that the first argument names, with the others."""
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # closed, as by `>&-`
            setattr(sys, stream, open(os.devnull, "w"))  # noqa: SIM115
    name, *others = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print("usage: keras-deeplab COMMAND [OPTIONS], or keras-deeplab --version\n")
        print("Commands (keras-deeplab COMMAND --help describes their options):\n")
        print("\n".join(f"  {command:16}  {text}" for command, text in COMMANDS.items()))
        return 0
    if name not in (*COMMANDS, "--version"):
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        meant = f" Did you mean {close[0]!r}?" if close else ""
        print(f"error: There is no command {name!r}.{meant} See --help.", file=sys.stderr)
        return 2
    terminated = False

    def interrupt(*_: object) -> None:
        nonlocal terminated
        terminated = True
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        # So that temporary files are removed, locks released, and how to resume is printed.
        signal.signal(signal.SIGTERM, interrupt)
    try:
        import_tensorflow()
        if name == "--version":
            print(importlib.import_module("keras_deeplab").__version__)
            return 0
        command = importlib.import_module(f"keras_deeplab.cli.{name.replace('-', '_')}")
        status = command.main(others)
    except ImportError as error:  # of Keras' settings, or an installation that is not whole
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # while modules are imported
        print("\nInterrupted.", file=sys.stderr)
        status = 130
    if status == 130:
        atexit.register(_ignore_interrupts)
    return 143 if terminated else status


def _ignore_interrupts() -> None:
    """The program ends: a second interrupt would stop its last steps halfway."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    raise SystemExit(main())
