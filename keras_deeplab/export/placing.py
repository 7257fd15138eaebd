"""Where an export takes its place once it has passed the comparison."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from keras_deeplab.files import atomic_write, full_disk_named
from keras_deeplab.validation import error


@contextmanager
def verified_file(path: str | os.PathLike, suffix: str, overwrite: bool) -> Iterator[Path]:
    """Yields a temporary file beside `path` that takes its place when the block succeeds."""
    path = Path(path)
    if path.suffix.lower() != suffix:
        raise error("path", f"a file name that ends in {suffix}", os.fspath(path))
    if path.is_dir() or (path.exists() and not overwrite):
        raise FileExistsError(
            f"`path` must be a new file, or one to replace with overwrite=True. Received: {path=}"
        )
    with atomic_write(path) as temporary:
        yield temporary


@contextmanager
def verified_folder(path: str | os.PathLike, overwrite: bool) -> Iterator[Path]:
    """Yields a temporary folder beside `path` that takes its place when the block succeeds."""
    path = Path(path)
    if path.suffix.lower() in (".tflite", ".onnx"):
        raise error("path", f"the name of a folder: {path.suffix} is another format", str(path))
    empty = not path.exists() or (path.is_dir() and not any(path.iterdir()))
    if not empty and not (overwrite and (path / "saved_model.pb").is_file()):
        raise FileExistsError(
            "`path` must be a new folder or a SavedModel to replace with overwrite=True. "
            f"Received: path={path}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    old = path.with_name(f"{temporary.name}.old")
    try:
        with full_disk_named(path):
            yield temporary
        if path.exists():
            path.rename(old)
        temporary.rename(path)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)
