"""The error of everything that goes wrong with a file of weights."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Characters of another library's error.
_MOST = 400


class WeightsError(ValueError):
    """Weights that cannot be read, or that are not those of the model.

    Attributes:
        path: The file (or URL, or name) that is at fault.
        reason: What is wrong with it.
    """

    def __init__(self, path: str | os.PathLike, reason: str) -> None:
        super().__init__(f"{os.fspath(path)}: {reason}")
        self.path = path
        self.reason = reason


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns the system's refusals to read a file, or a folder of files, into WeightsErrors.

    A named pipe is refused before it is opened, which might never return.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise WeightsError(path, "it must be a regular file, not a named pipe or a device")
        yield
    except OSError as error:
        raise WeightsError(path, f"it cannot be read: {error.strerror or error}") from error


def shortened(error: Exception) -> str:
    """Another library's error in one line, its type where it says nothing."""
    # Keras quotes the whole configuration before what happened.
    text = str(error).rpartition("Exception encountered: ")[2]
    return textwrap.shorten(text, _MOST, placeholder=" ...") or type(error).__name__


def printable(text: str) -> str:
    """A text from a file that may hold anything, short and as a terminal can show it."""
    return ascii(text[:100])[1:-1]
