"""Files that are written aside and renamed, so that none is ever half there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path` that takes its place when all went well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Writes readable, valid JSON."""
    with written_aside(path) as aside:
        aside.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Writes a picture."""
    with written_aside(path) as aside:
        Image.fromarray(np.ascontiguousarray(pixels)).save(aside, format="png")
