"""Where an export takes its place once it has passed the comparison."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from keras_deeplab.files import atomic_write, check_writable, full_disk_named, move
from keras_deeplab.validation import error

SUFFIXES = {"litert": ".tflite", "onnx": ".onnx"}  # the other format is a folder
# What a SavedModel has in its folder.
ENTRIES = {"saved_model.pb", "keras_metadata.pb", "fingerprint.pb", "variables", "assets"}
ENTRIES |= {"assets.extra"}


def checked_target(path: str | os.PathLike, suffix: str | None, overwrite: bool) -> Path:
    """Returns where an export is written, a file that ends so or a folder, or raises.

    A link stays one: what it leads to is replaced.
    """
    given = Path(os.path.expanduser(path))
    path = Path(os.path.realpath(given))
    ending = given.suffix.lower()
    if suffix is None:
        if ending in SUFFIXES.values():
            rule = f"the name of a folder: {ending} is another format"
            raise error("path", rule, os.fspath(given))
        found = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
        empty = not path.exists() or (path.is_dir() and not found)
        replaced, is_old = "folder or a SavedModel", "saved_model.pb" in found
        others = sorted(name for name in found - ENTRIES if not name.startswith("."))
        if overwrite and is_old and others:
            rule = "a SavedModel without other files, as its folder is replaced"
            raise error("path", rule, f"{given} with {', '.join(others)}")
    else:
        if ending != suffix:
            raise error("path", f"a file name that ends in {suffix}", os.fspath(given))
        empty, replaced, is_old = not path.exists(), "file, or one", path.is_file()
    if not empty and not (overwrite and is_old):
        rule = f"`path` must be a new {replaced} to replace with overwrite=True"
        raise FileExistsError(f"{rule}. Received: path={given}")
    return path


@contextmanager
def verified_file(path: str | os.PathLike, suffix: str, overwrite: bool) -> Iterator[Path]:
    """Yields a temporary file beside `path` that takes its place when the block succeeds."""
    with atomic_write(checked_target(path, suffix, overwrite), suffix=suffix) as temporary:
        yield temporary
        checked_target(path, suffix, overwrite)  # again: an export takes minutes


@contextmanager
def verified_folder(path: str | os.PathLike, overwrite: bool) -> Iterator[Path]:
    """Yields a temporary folder beside `path` that takes its place when the block succeeds."""
    given, path = path, checked_target(path, None, overwrite)
    check_writable(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    old = path.with_name(f"{temporary.name}.old")
    try:
        with full_disk_named(path):
            yield temporary
        checked_target(given, None, overwrite)  # again: an export takes minutes
        if path.exists():
            move(path, old)
        move(temporary, path)
    finally:
        if old.exists() and not path.exists():
            move(old, path)
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)
