"""Extracts TensorFlow checkpoints from .tar and .tar.gz archives."""

from __future__ import annotations

import gzip
import re
import shutil
import tarfile
import zlib
from pathlib import Path, PureWindowsPath
from typing import BinaryIO

from keras_deeplab.weights.errors import WeightsError

# The largest published checkpoint takes half a gigabyte.
MAX_BYTES = 8 << 30
# Weights hardly shrink when they are packed, an optimizer's first zeros do; a bomb grows by 1000.
MAX_RATIO = 32
_ALWAYS_ALLOWED = 64 << 20

_GZIP = b"\x1f\x8b"
_CHUNK = 1 << 20
# Hidden files are not part of a checkpoint: macOS adds a "._NAME" beside each.
_FILE = re.compile(r"[^.].*\.(index|data-\d{5}-of-\d{5})")


def is_archive(path: Path) -> bool:
    """Whether a file is a .tar or .tar.gz archive, by its content."""
    with path.open("rb") as file:
        start = file.read(262)
    return start.startswith(_GZIP) or start[257:] == b"ustar"


def extract_checkpoint(path: Path, folder: Path) -> None:
    """Extracts the files of TensorFlow checkpoints, and nothing else, into a folder itself.

    Only contents are taken over: no paths, links, rights or owners.
    """
    try:
        with path.open("rb") as file:
            is_packed = file.read(len(_GZIP)) == _GZIP
        with (
            gzip.open(path) if is_packed else path.open("rb") as file,
            tarfile.open(fileobj=_InPieces(file), mode="r:") as archive,
        ):
            _extract(path, archive, folder)
            while file.read(_CHUNK):  # to the end, where gzip has its checksum
                _check_size(path, file.tell())
    except WeightsError:
        raise
    except (
        tarfile.TarError,
        EOFError,
        zlib.error,
        gzip.BadGzipFile,
        RecursionError,
        ValueError,
    ) as error:
        reason = f"the archive is damaged or cut off ({error}); download it again"
        raise WeightsError(path, reason) from error


def _extract(path: Path, archive: tarfile.TarFile, folder: Path) -> None:
    total = 0
    for member in archive:
        name = PureWindowsPath(member.name)  # which knows both kinds of separators
        if name.root or ".." in name.parts or ":" in member.name:
            raise WeightsError(
                path, f"unsafe member {member.name!r}: its path leads out of the archive's folder"
            )
        if member.size < 0:
            raise tarfile.ReadError(f"a member of {member.size} bytes")
        total += member.size
        _check_size(path, total)
        if not _FILE.fullmatch(name.name) or member.isdir():
            continue
        if not member.isreg():
            raise WeightsError(path, f"member {member.name!r} must be a file, not a link")
        if (folder / name.name).exists():
            raise WeightsError(path, f"it holds several files {name.name!r}")
        with archive.extractfile(member) as content, (folder / name.name).open("xb") as extracted:
            shutil.copyfileobj(content, extracted, _CHUNK)


class _InPieces:
    """A file that is read in pieces only: tarfile reads a header of any declared size in one."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if size > _CHUNK:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self.file.read(size)


def _check_size(path: Path, size: int) -> None:
    limit = min(MAX_BYTES, max(_ALWAYS_ALLOWED, MAX_RATIO * path.stat().st_size))
    if size > limit:
        raise WeightsError(path, f"it unpacks to {size} bytes; at most {limit} are unpacked")
