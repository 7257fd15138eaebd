"""Reads the state dicts of `torch.save` without torch and without executing their pickles."""

from __future__ import annotations

import collections
import io
import mmap
import os
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from keras_deeplab.files import check_unpacked
from keras_deeplab.weights.checkpoint import may_hold
from keras_deeplab.weights.errors import WeightsError, printable, reading
from keras_deeplab.weights.readers.torch_pickle import (
    Object,
    Storage,
    Tensor,
    Unpickler,
    UnreadablePickle,
    tensor_of,
)

Keys = tuple[str, ...]
Shapes = Mapping[str, tuple[int, ...]]
# What a file holds, and a function that reads a storage's content.
_Content = tuple[Any, Callable[[Storage], bytes]]

# Levels of dicts in which a state dict is looked for: "ema", then "module", say.
_MAX_DEPTH = 4
_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL_VERSION = 1001
# What zipfile raises for files that are not archives.
_ZIP_ERRORS = (zipfile.BadZipFile, struct.error, EOFError, RuntimeError, ValueError, OverflowError)


def is_torch_file(path: Path) -> bool:
    """Whether a file is one of `torch.save`, also one of a kind that `read` refuses."""
    with path.open("rb") as file:
        return _kind(file) is not None


def read(
    path: Path, choose: Callable[[Mapping[Keys, Shapes]], Keys] = lambda found: next(iter(found))
) -> dict[str, np.ndarray]:
    """Reads one state dict of a file, of today's zip format or the one before.

    Args:
        path: The file.
        choose: Chooses from the shapes in each state dict, by the keys that lead to it; by default
            the outermost and first. No numbers of the others are read.
    """
    try:
        with reading(path), path.open("rb") as file:
            return _read(file, choose)
    except UnreadablePickle as error:
        raise WeightsError(path, str(error)) from error
    except WeightsError:
        raise
    except _ZIP_ERRORS as error:
        raise WeightsError(path, f"damaged or cut file ({printable(str(error))})") from error


def _read(file: BinaryIO, choose: Callable[[Mapping[Keys, Shapes]], Keys]) -> dict[str, np.ndarray]:
    size = os.fstat(file.fileno()).st_size
    content, stored = _content(file, size)
    found = _state_dicts(content)
    for tensors in found.values():
        declared = sum(tensor.nbytes for tensor in tensors.values())
        if not may_hold(size, declared):
            raise UnreadablePickle(
                f"refused tensors of {declared} bytes from a file of {size} bytes"
            )
    shapes = {keys: {name: t.shape for name, t in held.items()} for keys, held in found.items()}
    tensors = found[choose(shapes)]
    contents = {storage: stored(storage) for storage in {t.storage for t in tensors.values()}}
    return {name: tensor.array(contents[tensor.storage]) for name, tensor in tensors.items()}


def _kind(file: BinaryIO) -> str | None:
    file.seek(0)
    begin = file.read(4096)
    if begin.startswith(b"PK\x03\x04"):
        try:
            names = zipfile.ZipFile(file).namelist()
        except (*_ZIP_ERRORS, OSError):
            # The list of names is at the end, which a cut file lacks; torch puts this one first.
            return "zip" if b"/data.pkl" in begin else None
        return "zip" if any(name.endswith("/data.pkl") for name in names) else None
    try:
        number = Unpickler(io.BytesIO(begin[:64])).load()
    except UnreadablePickle:
        return None
    return "stream" if number == _MAGIC_NUMBER else None


def _content(file: BinaryIO, size: int) -> _Content:
    kind = _kind(file)
    if kind == "zip":
        return _zip_content(zipfile.ZipFile(file), size)
    if kind == "stream":
        return _stream_content(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    raise UnreadablePickle("not a file of torch.save, or cut within its first bytes")


def _zip_content(archive: zipfile.ZipFile, size: int) -> _Content:
    """Of an archive with a pickle, `<name>/data.pkl`, and each storage as a member."""
    members = {member.filename: member for member in archive.infolist()}
    pickles = [name for name in members if name.endswith("/data.pkl")]
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in members:
        raise UnreadablePickle(
            "a TorchScript archive, which is a program; save model.state_dict() instead"
        )
    check_unpacked(archive, size)
    order = f"{folder}byteorder"
    if order in members and (found := archive.read(order)) != b"little":
        raise UnreadablePickle(f"its byte order must be little. Received: {found[:20]!r}")
    content = Unpickler(io.BytesIO(archive.read(pickles[0]))).load()

    def stored(storage: Storage) -> bytes:
        member = members.get(f"{folder}data/{storage.key}")
        if member is None or member.file_size != storage.nbytes:
            found = "no member" if member is None else f"a member of {member.file_size} bytes"
            key = printable(storage.key)
            raise UnreadablePickle(f"{found} for storage {key} of {storage.nbytes} bytes")
        return archive.read(member)

    return content, stored


def _stream_content(memory: mmap.mmap) -> _Content:
    """Of the format before torch 1.6: five pickles, the last lists the storages; their bytes."""
    unpicklers = [Unpickler(memory) for _ in range(5)]
    _, protocol, _, content, keys = [unpickler.load() for unpickler in unpicklers]
    if protocol != _PROTOCOL_VERSION:
        raise UnreadablePickle(f"not of torch's protocol {_PROTOCOL_VERSION}")
    storages = unpicklers[3].storages
    strings = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not strings or sorted(keys) != sorted(storages):
        raise UnreadablePickle("the list of storages is not that of the tensors")
    places = {}
    end = memory.tell()
    for key in keys:
        if int.from_bytes(memory[end : end + 8], "little") != storages[key].count:
            raise UnreadablePickle(f"storage {printable(key)} has another size than declared")
        places[key] = slice(end + 8, end + 8 + storages[key].nbytes)
        end = places[key].stop
    if end > len(memory):
        raise UnreadablePickle("cut within a storage")
    return content, lambda storage: memory[places[storage.key]]


def _state_dicts(value: object) -> dict[Keys, dict[str, Tensor]]:
    """The dicts of tensors in a file, by the keys that lead to them; of equal ones the first."""
    if not isinstance(value, Object) or not value.is_dict:
        name = value.name if isinstance(value, Object) else type(value).__name__
        raise UnreadablePickle(f"holds a {printable(name)}, not a dict of tensors")
    found: dict[Keys, dict[str, Tensor]] = {}
    seen: set[int | frozenset] = set()
    todo: collections.deque[tuple[Keys, Object]] = collections.deque([((), value)])
    while todo:
        keys, held = todo.popleft()
        if id(held) in seen:
            continue
        names = {key: inner for key, inner in held.pairs() if isinstance(key, str)}
        tensors = {key: t for key, each in names.items() if (t := tensor_of(each))}
        same = frozenset(tensors.items())
        if tensors and same not in seen:
            found[keys] = tensors
        seen |= {id(held), same}
        if len(keys) < _MAX_DEPTH:
            todo += [
                ((*keys, key), inner)
                for key, inner in names.items()
                if isinstance(inner, Object) and inner.is_dict
            ]
    if not found:
        names = [key for key, _ in value.pairs() if isinstance(key, str)]
        shown = ", ".join(map(printable, names[:20]))
        raise UnreadablePickle(f"holds no tensors by name; its keys: {shown or 'none'}")
    return found
