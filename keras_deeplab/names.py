"""Names that people write in several ways: `ResNet50`, `resnet-50`, `DeepLabV3+`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


def key(name: str) -> str:
    """The lower-case letters and digits of a name, with `plus` for `+`: what its spellings share.

    Example:

    >>> keras_deeplab.names.key("DeepLab-V3+")
    'deeplabv3plus'
    """
    return "".join(c for c in name.lower().replace("+", "plus") if c.isalnum())


def match(name: str, names: Iterable[str]) -> str | None:
    """Returns the entry of `names` that equals `name` up to case and punctuation, or None.

    Example:

    >>> keras_deeplab.names.match("MobileNetV2", ["resnet50", "mobilenet_v2"])
    'mobilenet_v2'
    """
    return next((known for known in names if key(known) == key(name)), None)


def suggestion(name: Any, names: Iterable[str]) -> str:
    """A sentence with the closest of `names`, to end an error message; empty where none is close.

    Example:

    >>> keras_deeplab.names.suggestion("resnet-51", ["resnet50", "mobilenet_v2"])
    " Did you mean 'resnet50'?"
    """
    by_key = {key(known): known for known in names}
    close = difflib.get_close_matches(key(str(name)), by_key, n=1)
    return f" Did you mean {by_key[close[0]]!r}?" if close else ""
