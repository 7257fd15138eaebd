"""Paths of data sets: local ones, and those of TensorFlow's remote file systems."""

from __future__ import annotations

import errno
import io
import os
import posixpath
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Self

import tensorflow as tf

from keras_deeplab import validation
from keras_deeplab.data.faults import FileFault


class RemotePath(PurePosixPath):
    """A path such as `gs://bucket/folder`, read by `tf.io.gfile` with the methods of `Path`.

    Not `etils.epath`, which knows four schemes only. Errors of TensorFlow become OSErrors.
    """

    def __str__(self) -> str:
        return super().__str__().replace(":/", "://", 1)  # pathlib joins slashes

    @property
    def parent(self) -> Self:
        """The folder around it; a bucket's is the bucket."""
        return self if len(self.parts) <= 2 else super().parent

    def stat(self) -> os.stat_result:
        """Returns type and size; all else is 0."""
        found = _read(tf.io.gfile.stat, self)
        kind = stat.S_IFDIR if found.is_directory else stat.S_IFREG
        return os.stat_result((kind, *[0] * 5, found.length, *[0] * 3))

    def exists(self) -> bool:
        """Whether it is there. Without access to it, an error is raised."""
        return self._mode() != 0

    def is_dir(self) -> bool:
        """Whether it is a folder."""
        return stat.S_ISDIR(self._mode())

    def is_file(self) -> bool:
        """Whether it is a file."""
        return stat.S_ISREG(self._mode())

    def _mode(self) -> int:
        try:
            return self.stat().st_mode
        except FileNotFoundError:
            return 0

    def is_symlink(self) -> bool:
        """Remote file systems have no links."""
        return False

    def iterdir(self) -> Iterator[Self]:
        """Yields the entries of a folder."""
        # Folders end with a slash on some file systems.
        return (self / name for name in _read(tf.io.gfile.listdir, self) if name.strip("/"))

    def all_files(self) -> Iterator[Self]:
        """Yields the files of all folders below."""
        for folder, _, files in _read(lambda path: list(tf.io.gfile.walk(path)), self):
            yield from (type(self)(folder) / name for name in files)

    def read_bytes(self) -> bytes:
        """Returns the content of a file."""
        return _read(lambda path: tf.io.gfile.GFile(path, "rb").read(), self)

    def read_text(self, encoding: str) -> str:
        """Returns the content of a text file."""
        return self.read_bytes().decode(encoding)

    def open(self, mode: str) -> io.BytesIO:
        """Opens a file that is read at once; `mode` is `"rb"`."""
        del mode
        return io.BytesIO(self.read_bytes())

    def mkdir(self, **_: Any) -> None:
        """Raises an OSError: nothing is written beside remote data."""
        raise OSError(errno.EROFS, "remote data sets are read only", str(self))


def data_path(path: str | os.PathLike) -> Path | RemotePath:
    """Returns the path of a data set, or raises a ValueError if its file system is not known."""
    text = os.fspath(path)
    if not is_remote(text):
        return Path(os.path.expanduser(path))  # shells expand no `~` after a prefix such as `coco:`
    scheme, known = text.partition(":")[0], tf.io.gfile.get_registered_schemes()
    if scheme == "file":
        return Path(re.sub("^file:/+", "/", text))
    if scheme not in known:
        rule = f"a path of a file system of TensorFlow: {', '.join(filter(None, sorted(known)))}"
        advice = (
            f"For {scheme}:// import a package that registers it, such as tensorflow-io, or copy "
            "the data"
        )
        raise validation.error("name", rule, text, advice)
    return RemotePath(text)


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path is that of a remote file system, also where `Path` has joined its slashes."""
    scheme, slashes = re.match(r"(?:(\w{2,}):(/*))?", os.fspath(path)).groups("")
    return len(slashes) > 1 or (bool(slashes) and scheme in tf.io.gfile.get_registered_schemes())


def absolute(path: Path | RemotePath) -> Path | RemotePath:
    """Returns an absolute path without `..`; not resolved, so that links keep their names."""
    return RemotePath(normal(path)) if isinstance(path, RemotePath) else Path(os.path.abspath(path))


def normal(path: Path | RemotePath) -> str:
    """Returns a path without `..`; on Windows a remote one keeps its slashes."""
    return (posixpath if isinstance(path, RemotePath) else os.path).normpath(path)


def check_local(path: Path | RemotePath, what: str) -> None:
    """Raises a FileFault for a remote file of a kind that is read in parts."""
    if isinstance(path, RemotePath):
        raise FileFault("remote file", what)


def _read(function: Callable[[str], Any], path: RemotePath) -> Any:
    try:
        return function(str(path))
    except tf.errors.NotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, "no such file or folder", str(path)) from error
    except tf.errors.OpError as error:
        text = " ".join(error.message.split()) or type(error).__name__
        raise OSError(f"{path} could not be read: {text}") from error
