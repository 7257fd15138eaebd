"""Extracts TensorFlow checkpoints from .tar and .tar.gz archives."""

from __future__ import annotations

import gzip
import re
import shutil
import tarfile
from pathlib import Path, PureWindowsPath
from typing import BinaryIO

from keras_deeplab.weights.errors import UnreadableError

# The largest published checkpoint takes half a gigabyte.
MAX_BYTES = 8 << 30
# Weights hardly shrink when they are packed, an optimizer's first zeros do; a bomb grows by 1000.
MAX_RATIO = 32
_ALWAYS_ALLOWED = 64 << 20

GZIP = b"\x1f\x8b"
_CHUNK = 1 << 20
# Hidden files are not part of a checkpoint: macOS adds a "._NAME" beside each.
_FILE = re.compile(r"[^.].*\.(index|data-\d{5}-of-\d{5})")


def extract_checkpoint(path: Path, folder: Path) -> None:
    """Extracts the files of TensorFlow checkpoints, and nothing else, into a folder itself.

    Only contents are taken over: no paths, links, rights or owners.
    """
    limit = min(MAX_BYTES, max(_ALWAYS_ALLOWED, MAX_RATIO * path.stat().st_size))
    with path.open("rb") as file:
        is_packed = file.read(len(GZIP)) == GZIP
    total = 0
    with (
        gzip.open(path) if is_packed else path.open("rb") as file,
        tarfile.open(fileobj=_InPieces(file), mode="r:") as archive,
    ):
        for member in archive:
            if member.size < 0:
                raise UnreadableError(f"it has a member of {member.size} bytes")
            total += member.size
            _check_size(total, limit)
            name = PureWindowsPath(member.name).name  # which splits at both kinds of separators
            if not member.isreg() or not _FILE.fullmatch(name) or ":" in name:
                continue
            with archive.extractfile(member) as content, (folder / name).open("xb") as extracted:
                shutil.copyfileobj(content, extracted, _CHUNK)
        while file.read(_CHUNK):  # to the end, where gzip has its checksum
            _check_size(file.tell(), limit)


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise UnreadableError(f"it unpacks to {size} bytes; at most {limit} are unpacked")


class _InPieces:
    """A file that is read in pieces only: tarfile reads a header of any declared size in one."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if size > _CHUNK:
            raise UnreadableError(f"it has a header of {size} bytes")
        return self.file.read(size)
