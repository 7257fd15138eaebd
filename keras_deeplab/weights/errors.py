"""The error of everything that goes wrong with a file of weights."""

from __future__ import annotations

import os
import textwrap

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


def shortened(error: Exception) -> str:
    """Another library's error in one line, its type where it says nothing."""
    # Keras quotes the whole configuration before what happened.
    text = str(error).rpartition("Exception encountered: ")[2]
    return textwrap.shorten(text, _MOST, placeholder=" ...") or type(error).__name__
