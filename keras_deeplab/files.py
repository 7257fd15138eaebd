"""Atomic writes, which leave no partial file, and JSON files."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import stat
import time
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

# A full disk, an exceeded quota and a limit of file size, in the words of the system, HDF5 and
# TensorFlow.
_DISK_FULL = [os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)]


# Seconds between attempts to rename: on Windows virus scanners, the search index and cloud clients
# open a new file for a moment.
_WAITS = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2) if os.name == "nt" else ()


class DiskFullError(OSError):
    """A file could not be written because the disk is full."""

    def __init__(self, path: Path, reason: str, needed: int = 0) -> None:
        free = f"{shutil.disk_usage(path.parent).free / 1e6:,.1f} MB are free"
        size = f"{needed / 1e6:,.1f} MB are needed, " if needed else ""
        super().__init__(
            f"{path} could not be written: {reason} ({size}{free}). Free some space, then run the "
            "same command again."
        )


@contextmanager
def full_disk_named(path: Path, needed: int = 0) -> Iterator[None]:
    """Turns the error of a full disk, from any library, into a `DiskFullError` of `path`."""
    try:
        yield
    except DiskFullError:
        raise
    except (OSError, RuntimeError, tf.errors.OpError) as error:
        reason = next((text for text in _DISK_FULL if text in str(error)), None)
        if reason is None:
            raise
        raise DiskFullError(path, reason, needed) from error


def check_writable(path: Path) -> None:
    """Makes the folder of a path, or raises an OSError that names the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


@contextmanager
def atomic_write(path: Path, size: int = 0, suffix: str = "") -> Iterator[Path]:
    """Yields a temporary path beside `path`, which replaces `path` unless there is an error.

    Without space for `size` bytes nothing is written: HDF5 may end the whole process when the disk
    becomes full.
    """
    check_writable(path)
    if shutil.disk_usage(path.parent).free < size:
        raise DiskFullError(path, _DISK_FULL[0], size)
    temporary = path.with_name(f".{os.getpid()}-{uuid.uuid4().hex[:8]}{suffix or path.suffix}")
    with full_disk_named(path, size):
        try:
            yield temporary
            move(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def move(path: Path, target: Path) -> None:
    """Renames a file or folder, which replaces an existing file.

    Windows refuses it with a PermissionError while another program has one of them open.
    """
    for seconds in _WAITS:
        try:
            return os.replace(path, target)
        except PermissionError:
            time.sleep(seconds)
    return os.replace(path, target)


def stored_bytes(model: keras.Model) -> int:
    """Returns the bytes that the variables of a model and its optimizer take in a file."""
    optimizer = getattr(model, "optimizer", None)
    variables = [*model.variables, *(optimizer.variables if optimizer is not None else [])]
    return sum(math.prod(v.shape) * tf.as_dtype(v.dtype).size for v in variables)


_SPECIAL_FILES = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def special_file(path: Path) -> str | None:
    """Returns what a path is if not a regular file: opening a named pipe may wait forever."""
    if path.is_symlink() and not path.exists():
        return "a link to nothing"
    return _SPECIAL_FILES.get(stat.S_IFMT(path.stat().st_mode))


def read_json_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object in UTF-8, with or without a byte order mark.

    The message of the ValueError begins with a verb, to follow the path.
    """
    if not path.is_file():
        raise ValueError("is not a regular file")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except RecursionError as error:
        raise ValueError("is not readable as JSON: brackets are nested too deeply") from error
    except (ValueError, OSError) as error:
        raise ValueError(f"is not readable as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"must hold a JSON object. Received: {shortened(content)}")
    return content


def read_json(path: Path, advice: str) -> dict[str, Any]:
    """Reads a JSON object; the error names the path and ends with a sentence on how to fix it."""
    try:
        return read_json_object(path)
    except ValueError as error:
        raise ValueError(f"{path} {error}. {advice}") from error


def write_json(path: Path, content: Any) -> None:
    """Writes readable, valid JSON."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def digest(content: Any) -> str:
    """Identifies JSON, in which other objects are their text."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_text(path: Path, text: str) -> None:
    """Writes a text in UTF-8, with the line ends that it has."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def relative_path(path: str | os.PathLike, folder: Path) -> str:
    """Returns a path as seen from a folder, or the absolute one on another drive of Windows."""
    try:
        return os.path.relpath(path, folder)
    except ValueError:
        return os.path.abspath(path)


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Writes an image as PNG."""
    with atomic_write(path) as temporary:
        Image.fromarray(np.ascontiguousarray(pixels)).save(temporary, format="png")


def check_unpacked(archive: zipfile.ZipFile, size: int) -> None:
    """Checks that a zip archive of `size` bytes unpacks to no more, or raises a BadZipFile."""
    if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
        raise zipfile.BadZipFile("its members are compressed")
    if sum(member.file_size for member in archive.infolist()) > size:
        raise zipfile.BadZipFile("its members are larger than the file")
