"""Reads the state dicts of `torch.save` without torch and without executing their pickles."""

from __future__ import annotations

import collections
import io
import math
import mmap
import os
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from keras_deeplab.files import check_unpacked
from keras_deeplab.weights.checkpoint import may_hold
from keras_deeplab.weights.errors import WeightsError, printable, reading
from keras_deeplab.weights.readers.torch_pickle import (
    Tensor,
    Unpickler,
    UnreadablePickle,
    tensor_of,
)

Keys = tuple[str, ...]
Shapes = Mapping[str, tuple[int, ...]]

# Levels of dicts in which a state dict is looked for: "ema", then "module", say.
_MAX_DEPTH = 4

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL_VERSION = 1001
# What zipfile raises for archives that are none: a seek to a negative offset is an OSError.
_ZIP_ERRORS = (
    *(zipfile.BadZipFile, struct.error, EOFError),
    *(RuntimeError, ValueError, OverflowError, OSError),
)


def is_torch_file(path: Path) -> bool:
    """Whether a file is one of `torch.save`, also one of a kind that `read` refuses.

    Args:
        path: Any path; one that is no file is no torch file.
    """
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return _kind(file) is not None


def read(
    path: Path, choose: Callable[[Mapping[Keys, Shapes]], Keys] = lambda held: next(iter(held))
) -> dict[str, np.ndarray]:
    """Reads a state dict of a `.pth` or `.pt` file, of today's zip format or the one before.

    State dicts are found in whatever dicts hold them; what lies beside the one that is chosen, the
    state of an optimizer say, is not read.

    Args:
        path: The file.
        choose: Chooses from the shapes in each state dict, by the keys that lead to it; by default
            the outermost and first.

    Returns:
        An array for each name, independent of the file. The arrays are views that cannot be
        written, strided as they were stored; tensors that share memory share it here too.
        bfloat16 comes as the `ml_dtypes` type that TensorFlow uses.

    Raises:
        WeightsError: The file is missing, damaged, cut, holds no state dict, or holds other
            things than tensors in plain containers.
    """
    try:
        with reading(path), path.open("rb") as file, _opened(file) as contents:
            found = _state_dicts(contents.value)
            size = os.fstat(file.fileno()).st_size
            shapes = {keys: _shapes(tensors, size) for keys, tensors in found.items()}
            return _arrays(contents, found[choose(shapes)])
    except UnreadablePickle as error:
        raise WeightsError(path, str(error)) from error


@dataclass(frozen=True)
class _Contents:
    """What a file's pickle holds, and the function that reads the bytes of a storage."""

    value: Any
    stored: Callable[[str], np.ndarray]
    byteorder: str = "little"  # of the older format on every machine


def _kind(file: BinaryIO) -> str | None:
    file.seek(0)
    begin = file.read(4096)
    if begin.startswith(b"PK\x03\x04"):
        try:
            with zipfile.ZipFile(file) as archive:
                names = archive.namelist()
        except _ZIP_ERRORS:
            # The list of names is at the end, which a cut file lacks; torch puts this one first.
            return "zip" if b"/data.pkl" in begin else None
        return "zip" if any(name.endswith("/data.pkl") for name in names) else None
    if begin[257:262] == b"ustar":
        blocks = [begin[start : start + 9] for start in range(0, len(begin), 512)]
        return "tar" if b"sys_info\0" in blocks else None
    try:
        number = Unpickler(io.BytesIO(begin[:64])).load()
    except UnreadablePickle:
        return None
    return "stream" if number == _MAGIC_NUMBER else None


@contextmanager
def _opened(file: BinaryIO) -> Iterator[_Contents]:
    kind = _kind(file)
    if kind == "zip":
        try:
            with zipfile.ZipFile(file) as archive:
                yield _zip_contents(archive, os.fstat(file.fileno()).st_size)
        except WeightsError:
            raise
        except _ZIP_ERRORS as error:
            reason = f"damaged or cut zip archive ({printable(str(error))})"
            raise UnreadablePickle(reason) from error
    elif kind == "stream":
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
            yield _stream_contents(memory)
    elif kind == "tar":
        raise UnreadablePickle(
            "a tar file of torch before 0.1.10; load it with torch and save its state dict again"
        )
    else:
        raise UnreadablePickle("not a file of torch.save, or cut within its first bytes")


def _zip_contents(archive: zipfile.ZipFile, size: int) -> _Contents:
    """Of an archive with a pickle, `<name>/data.pkl`, and each storage as a member."""
    members = {member.filename: member for member in archive.infolist()}
    pickles = [name for name in members if name.endswith("/data.pkl")]
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in members:
        raise UnreadablePickle(
            "a TorchScript archive, which is a program; save model.state_dict() instead"
        )
    if len(pickles) > 1:
        raise UnreadablePickle(f"an archive of {len(pickles)} pickles instead of one")
    check_unpacked(archive, size)
    unpickler = Unpickler(io.BytesIO(archive.read(f"{folder}data.pkl")))
    value = unpickler.load()
    for key, storage in unpickler.storages.items():
        member = members.get(f"{folder}data/{key}")
        if member is None or member.file_size != storage.nbytes:
            found = "no member" if member is None else f"a member of {member.file_size} bytes"
            raise UnreadablePickle(
                f"{found} for storage {printable(key)} of {storage.nbytes} bytes"
            )
    order = f"{folder}byteorder"
    byteorder = archive.read(order).decode() if order in members else "little"
    if byteorder not in ("little", "big"):
        raise UnreadablePickle(f"unknown byte order {printable(byteorder)}")

    def stored(key: str) -> np.ndarray:
        return np.frombuffer(archive.read(f"{folder}data/{key}"), np.uint8)

    return _Contents(value, stored, byteorder)


def _stream_contents(memory: mmap.mmap) -> _Contents:
    """Of the format before torch 1.6: five pickles, the last lists the storages; their bytes."""
    Unpickler(memory).load()  # the magic number
    if Unpickler(memory).load() != _PROTOCOL_VERSION:
        raise UnreadablePickle(f"not of torch's protocol {_PROTOCOL_VERSION}")
    Unpickler(memory).load()  # facts of the machine that wrote it
    unpickler = Unpickler(memory)
    value, storages = unpickler.load(), unpickler.storages
    keys = Unpickler(memory).load()
    strings = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not strings or sorted(keys) != sorted(storages):
        raise UnreadablePickle("the list of storages is not that of the tensors")
    starts: dict[str, int] = {}
    position = memory.tell()
    for key in keys:
        storage = storages[key]
        count = int.from_bytes(memory[position : position + 8], "little")
        starts[key] = position + 8
        position += 8 + storage.nbytes
        if position > len(memory):
            raise UnreadablePickle(f"cut within storage {printable(key)}")
        if count * storage.itemsize != storage.nbytes:
            raise UnreadablePickle(f"storage {printable(key)} has another size than declared")

    def stored(key: str) -> np.ndarray:
        content = memory[starts[key] : starts[key] + storages[key].nbytes]
        return np.frombuffer(content, np.uint8)

    return _Contents(value, stored)


def _arrays(contents: _Contents, tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    stored: dict[str, np.ndarray] = {}
    arrays = {}
    for name, tensor in tensors.items():
        key = tensor.storage.key
        if key not in stored:
            stored[key] = contents.stored(key)
            if contents.byteorder != sys.byteorder:
                numbers = stored[key].view(f"u{tensor.dtype.itemsize}").byteswap()
                stored[key] = numbers.view(np.uint8)
        arrays[name] = np.ndarray(
            tensor.shape,
            tensor.dtype,
            stored[key],
            tensor.storage.start + tensor.offset,
            tensor.strides,
        )
    return arrays


def _shapes(tensors: Mapping[str, Tensor], size: int) -> Shapes:
    declared = sum(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in tensors.values())
    if not may_hold(size, declared):
        raise UnreadablePickle(f"refused tensors of {declared} bytes from a file of {size} bytes")
    return {name: tensor.shape for name, tensor in tensors.items()}


def _state_dicts(value: object) -> dict[Keys, dict[str, Tensor]]:
    """The dicts of tensors in a file, by the keys that lead to them; of equal ones the first."""
    if not isinstance(value, dict):
        kind = "tensor" if tensor_of(value) else type(value).__name__
        raise UnreadablePickle(f"holds a {kind}, not a dict of tensors")
    found: dict[Keys, dict[str, Tensor]] = {}
    seen: set[int | frozenset] = set()
    todo = collections.deque([((), value)])
    while todo:
        keys, held = todo.popleft()
        if id(held) in seen:
            continue
        names = {key: inner for key, inner in held.items() if isinstance(key, str)}
        tensors = {k: t for k, inner in names.items() if (t := tensor_of(inner)) is not None}
        same = frozenset(tensors.items())
        if tensors and same not in seen:
            found[keys] = tensors
        seen |= {id(held), same}
        if len(keys) < _MAX_DEPTH:
            todo += [((*keys, k), inner) for k, inner in names.items() if isinstance(inner, dict)]
    if not found:
        shown = ", ".join(printable(key) for key in list(value)[:20] if isinstance(key, str))
        raise UnreadablePickle(f"holds no tensors by name; its keys: {shown or 'none'}")
    return found
