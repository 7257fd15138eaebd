"""The error of weights that cannot be read or loaded."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from keras_deeplab.names import printable

NO_AVERAGES = "`moving_averages` must be False: it holds none"


class WeightsError(ValueError):
    """Weights that cannot be read, or that do not fit the model.

    Attributes:
        path: The file, address or name.
        reason: What is wrong with it. Names in it may be those of an untrusted file: the text is
            bounded, and escaped for a terminal.
    """

    def __init__(self, path: str | os.PathLike, reason: str) -> None:
        self.path = path
        self.reason = printable(reason)
        super().__init__(f"{os.fspath(path)}: {self.reason}")


class UnreadableError(Exception):
    """The reason why a file cannot be read; `reading` adds the path."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns every error while a file or a folder of files is read into a `WeightsError`.

    A named pipe is refused before it is opened, as that may wait forever.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise UnreadableError("it must be a regular file, not a named pipe or a device")
        yield
    except (WeightsError, ImportError, MemoryError):
        raise
    except UnreadableError as error:
        raise WeightsError(path, str(error)) from error
    except Exception as error:  # the libraries have errors of every kind for damaged files
        raise WeightsError(path, f"it cannot be read: {shortened(error)}") from error


def shortened(error: Exception) -> str:
    """Another library's error in one line, its type where it has no message."""
    # Keras quotes the whole configuration before what happened.
    text = getattr(error, "strerror", None) or str(error).rpartition("Exception encountered: ")[2]
    return textwrap.shorten(text, 400, placeholder=" ...") or type(error).__name__
