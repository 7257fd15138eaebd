"""What is unpacked from archives: checks of their sizes, TensorFlow checkpoints from .tar.gz."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import tarfile
import uuid
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import BinaryIO

from keras_deeplab.weights.errors import WeightsError

# The largest published checkpoint takes half a gigabyte.
MAX_BYTES = 8 << 30
# Weights hardly shrink when they are packed, an optimizer's first zeros do; a bomb grows by 1000.
MAX_RATIO = 32
_ALWAYS_ALLOWED = 64 << 20

_GZIP = b"\x1f\x8b"
_TAR = b"ustar"  # at this offset of the first header
_TAR_OFFSET = 257
_CHUNK = 1 << 20
# Hidden files are none: macOS adds a "._NAME" beside each.
_FILE = re.compile(r"(?P<prefix>[^.].*)\.(index|data-(?P<shard>\d{5})-of-(?P<shards>\d{5}))")
_DAMAGE = (tarfile.TarError, EOFError, zlib.error, OSError)


@dataclass
class _Checkpoint:
    """The files of one checkpoint, by the names that they will have."""

    prefix: str
    files: dict[str, tarfile.TarInfo] = field(default_factory=dict)

    def missing(self) -> list[str]:
        """The names that are needed and not there."""
        counts = {m["shards"] for name in self.files if (m := _FILE.fullmatch(name))["shards"]}
        needed = [f"{self.prefix}.index"]
        for count in counts - {"00000"} or {"00001"}:
            needed += [f"{self.prefix}.data-{i:05}-of-{count}" for i in range(int(count))]
        return [name for name in needed if name not in self.files]


def is_archive(path: Path) -> bool:
    """Tells by a file's content, whatever its name, whether it is a .tar or .tar.gz archive."""
    path = Path(path)
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(_TAR_OFFSET + len(_TAR))
    return start.startswith(_GZIP) or start[_TAR_OFFSET:] == _TAR


def extract_checkpoint(path: Path, into: Path) -> Path:
    """Extracts the one TensorFlow checkpoint that an archive holds, and nothing else.

    The whole archive is read and judged before anything is written. The checkpoint's files, which
    may lie in a folder of the archive, come to lie in `into` itself.

    Args:
        path: A .tar or .tar.gz archive, such as those of DeepLab's authors.
        into: Folder for the files, made if it is missing.

    Returns:
        The checkpoint's prefix, `into / "model.ckpt"` for `model.ckpt.index` and its data files.

    Raises:
        WeightsError: If the archive is damaged or unsafe, holds no checkpoint, an incomplete one
            or several, or cannot be extracted; there is nothing new in `into` then.
    """
    path, into = Path(path), Path(into)
    if not is_archive(path):
        raise WeightsError(path, "must be a .tar or .tar.gz archive, and is no such file")
    try:
        with _opened(path) as archive:
            checkpoint = _only_checkpoint(path, _checked_members(path, archive))
    except _DAMAGE as error:
        raise WeightsError(
            path, f"the archive is damaged or cut off ({error}); download it again"
        ) from error
    try:
        _extract(path, checkpoint, into)
    except _DAMAGE as error:
        raise WeightsError(path, f"cannot be extracted into {into}: {error}") from error
    return into / checkpoint.prefix


class _InPieces:
    """A file that is read in pieces only: tarfile reads a header of any declared size in one."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if size > _CHUNK:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self.file.read(size)


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    with path.open("rb") as file:
        is_packed = file.read(len(_GZIP)) == _GZIP
    with (
        gzip.open(path) if is_packed else path.open("rb") as file,
        tarfile.open(fileobj=_InPieces(file), mode="r:") as archive,
    ):
        yield archive


def check_unpacked(archive: zipfile.ZipFile, size: int) -> None:
    """Checks that a zip archive of `size` bytes unpacks to no more than that.

    Raises:
        zipfile.BadZipFile: If members are compressed, or lie over each other.
    """
    if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
        raise zipfile.BadZipFile("its members are compressed")
    if sum(member.file_size for member in archive.infolist()) > size:
        raise zipfile.BadZipFile("its members are larger than the file")


def _checked_members(path: Path, archive: tarfile.TarFile) -> list[tarfile.TarInfo]:
    """All members, read to the archive's very end, where gzip has its checksum."""
    limit = min(MAX_BYTES, max(_ALWAYS_ALLOWED, MAX_RATIO * path.stat().st_size))
    members, total = [], 0
    for member in archive:
        name = PureWindowsPath(member.name)  # which knows both kinds of separators
        if name.root or ".." in name.parts or ":" in member.name:
            raise WeightsError(
                path, f"unsafe member {member.name!r}: its path leads out of the archive's folder"
            )
        total += member.size
        if member.size < 0 or total > limit:
            raise WeightsError(
                path,
                f"member {member.name!r} of {member.size} bytes makes {total} in all; at most "
                f"{limit} are unpacked",
            )
        members.append(member)
    rest = 0
    while chunk := archive.fileobj.read(_CHUNK):
        rest += len(chunk)
        if rest > limit:
            raise WeightsError(path, f"more than {limit} bytes follow its last member")
    return members


def _only_checkpoint(path: Path, members: list[tarfile.TarInfo]) -> _Checkpoint:
    found: dict[str, _Checkpoint] = {}
    for member in members:
        name = PureWindowsPath(member.name)
        match = _FILE.fullmatch(name.name)
        if match is None or member.isdir():
            continue
        if not member.isreg():
            raise WeightsError(path, f"member {member.name!r} is no file, but a link or device")
        prefix = (name.parent / match["prefix"]).as_posix()
        checkpoint = found.setdefault(prefix, _Checkpoint(match["prefix"]))
        if name.name in checkpoint.files:
            raise WeightsError(path, f"member {member.name!r} is there twice")
        checkpoint.files[name.name] = member
    if not found:
        raise WeightsError(path, "holds no TensorFlow checkpoint (NAME.index and NAME.data-...)")
    if len(found) > 1:
        raise WeightsError(
            path, f"must hold one checkpoint, and holds {len(found)}: {', '.join(sorted(found))}"
        )
    (checkpoint,) = found.values()
    if missing := checkpoint.missing():
        raise WeightsError(path, f"the checkpoint lacks {', '.join(missing)}")
    return checkpoint


def _extract(path: Path, checkpoint: _Checkpoint, into: Path) -> None:
    """Writes the files aside, and gives them their names when all are complete."""
    into.mkdir(parents=True, exist_ok=True)
    aside, moved = into / f".{uuid.uuid4().hex}", []
    try:
        aside.mkdir()
        with _opened(path) as archive:
            for name, member in checkpoint.files.items():
                # Not `extract`: no rights, owners or times of the archive are taken over.
                with archive.extractfile(member) as source, (aside / name).open("xb") as file:
                    shutil.copyfileobj(source, file, _CHUNK)
                if (aside / name).stat().st_size != member.size:
                    raise WeightsError(path, f"member {member.name!r} is cut off")
        for name in checkpoint.files:
            os.replace(aside / name, into / name)
            moved.append(into / name)
    except BaseException:
        for file in moved:
            file.unlink()
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
