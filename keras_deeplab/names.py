"""Names that people write in several ways: `ResNet50`, `resnet-50`; and names to be printed."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any


def key(name: str) -> str:
    """Returns what the spellings of a name share: letters, digits, and `plus` for `+`."""
    return "".join(c for c in name.lower().replace("+", "plus") if c.isalnum())


def match(name: str, names: Iterable[str]) -> str | None:
    """Returns the entry of `names` that equals `name` up to case and punctuation, or None."""
    return next((known for known in names if key(known) == key(name)), None)


# What is written for a name that is not alike, by `key`.
ALIASES = {"lr": "learningrate", "bs": "batchsize", "wd": "weightdecay", "checkpoint": "weights"}


def suggestion(name: Any, names: Iterable[str]) -> str:
    """Returns a sentence with the closest of `names` for the end of an error, or ""."""
    by_key, wanted = {key(known): known for known in names}, key(str(name))
    close = difflib.get_close_matches(ALIASES.get(wanted, wanted), by_key, n=1)
    return f" Did you mean {by_key[close[0]]!r}?" if close else ""


SHOWN_NAMES = 10


def first_few(names: Sequence[str]) -> str:
    """Returns the first names, `printable`, for a message."""
    shown = map(printable, names[:SHOWN_NAMES])
    return ", ".join([*shown, *["..."] * (len(names) > SHOWN_NAMES)])


def printable(text: str, most: int = 1000) -> str:
    """Returns a text from an untrusted file, at most so long, and escaped for a terminal.

    Spaces of all kinds stay, and the joiners of Persian and Indic scripts and of emoji.
    """
    return "".join(c if _is_printable(c) else ascii(c)[1:-1] for c in text[:most])


def _is_printable(c: str) -> bool:
    return c.isprintable() or c in "\u200c\u200d" or unicodedata.category(c) == "Zs"
