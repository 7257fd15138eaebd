"""The error of weights that cannot be read or loaded."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


class WeightsError(ValueError):
    """Weights that cannot be read, or that do not fit the model.

    Attributes:
        path: The file, address or name.
        reason: What is wrong with it.
    """

    def __init__(self, path: str | os.PathLike, reason: str) -> None:
        super().__init__(f"{os.fspath(path)}: {reason}")
        self.path = path
        self.reason = reason


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns OSErrors while a file or a folder of files is read into WeightsErrors.

    A named pipe is refused before it is opened, as that may wait forever.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise WeightsError(path, "it must be a regular file, not a named pipe or a device")
        yield
    except OSError as error:
        raise WeightsError(path, f"it cannot be read: {error.strerror or error}") from error


def shortened(error: Exception) -> str:
    """Another library's error in one line, its type where it has no message."""
    # Keras quotes the whole configuration before what happened.
    text = str(error).rpartition("Exception encountered: ")[2]
    return textwrap.shorten(text, 400, placeholder=" ...") or type(error).__name__


def printable(text: str) -> str:
    """An untrusted text from a file, shortened and escaped for a terminal."""
    return ascii(text[:100])[1:-1]


def listed(texts: Sequence[str], separator: str = ", ") -> str:
    """The first of several texts."""
    return separator.join(texts[:5]) + (f"{separator}..." if len(texts) > 5 else "")
