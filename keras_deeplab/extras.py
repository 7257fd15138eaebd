"""Optional packages, which the extras of the installation bring."""

from __future__ import annotations

import importlib.util


def require(what: str, extra: str, *packages: str) -> None:
    """Raises an ImportError with the extra to install if `what` needs packages that are missing."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        names = " and ".join(missing)
        raise ImportError(f"{what} needs {names}: pip install keras_deeplab[{extra}]")
