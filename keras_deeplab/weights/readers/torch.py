"""Reads the state dicts of `torch.save` without torch and without executing their pickles."""

from __future__ import annotations

import collections
import io
import mmap
import os
import struct
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from keras_deeplab.files import check_unpacked
from keras_deeplab.weights.checkpoint import may_hold
from keras_deeplab.weights.errors import WeightsError, printable, reading
from keras_deeplab.weights.readers.torch_pickle import Tensor, Unpickler, UnreadablePickle

Keys = tuple[str, ...]
Shapes = Mapping[str, tuple[int, ...]]

# Levels of dicts in which a state dict is looked for: "ema", then "module", say.
_MAX_DEPTH = 4

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL_VERSION = 1001
# What zipfile raises for files that are not archives: a seek to a negative offset is an OSError.
_ZIP_ERRORS = (
    *(zipfile.BadZipFile, struct.error, EOFError),
    *(RuntimeError, ValueError, OverflowError, OSError),
)


def is_torch_file(path: Path) -> bool:
    """Whether a file is one of `torch.save`, also one of a kind that `read` refuses."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return _kind(file) is not None


def read(
    path: Path, choose: Callable[[Mapping[Keys, Shapes]], Keys] = lambda found: next(iter(found))
) -> dict[str, np.ndarray]:
    """Reads a state dict of a `.pth` or `.pt` file, of today's zip format or the one before.

    State dicts are found in whatever dicts hold them, beside the state of an optimizer say.

    Args:
        path: The file.
        choose: Chooses from the shapes in each state dict, by the keys that lead to it; by default
            the outermost and first.

    Returns:
        An array for each name, as a view that is strided as it was stored; tensors that share
        memory share it here too. bfloat16 is the `ml_dtypes` type that TensorFlow uses.

    Raises:
        WeightsError: If the file is missing, damaged or cut, holds no state dict, or other things
            than tensors in plain containers.
    """
    try:
        with reading(path), path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            found = _state_dicts(_content(file, size))
    except UnreadablePickle as error:
        raise WeightsError(path, str(error)) from error
    for arrays in found.values():
        declared = sum(array.nbytes for array in arrays.values())
        if not may_hold(size, declared):
            raise WeightsError(
                path, f"refused tensors of {declared} bytes from a file of {size} bytes"
            )
    shapes = {k: {name: a.shape for name, a in arrays.items()} for k, arrays in found.items()}
    return found[choose(shapes)]


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
        number = Unpickler(io.BytesIO(begin[:64]), 0).load()
    except UnreadablePickle:
        return None
    return "stream" if number == _MAGIC_NUMBER else None


def _content(file: BinaryIO, size: int) -> Any:
    kind = _kind(file)
    if kind == "zip":
        try:
            with zipfile.ZipFile(file) as archive:
                return _zip_content(archive, size)
        except _ZIP_ERRORS as error:
            reason = f"damaged or cut zip archive ({printable(str(error))})"
            raise UnreadablePickle(reason) from error
    if kind == "stream":
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
            return _stream_content(memory)
    raise UnreadablePickle(
        "a tar file of torch before 0.1.10; load it with torch and save its state dict again"
        if kind == "tar"
        else "not a file of torch.save, or cut within its first bytes"
    )


def _zip_content(archive: zipfile.ZipFile, size: int) -> Any:
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
    order = f"{folder}byteorder"
    byteorder = archive.read(order).decode() if order in members else "little"
    if byteorder not in ("little", "big"):
        raise UnreadablePickle(f"unknown byte order {printable(byteorder)}")
    unpickler = Unpickler(io.BytesIO(archive.read(f"{folder}data.pkl")), size)
    content = unpickler.load()
    for key, array in unpickler.stored.items():
        member = members.get(f"{folder}data/{key}")
        if member is None or member.file_size != array.nbytes:
            found = "no member" if member is None else f"a member of {member.file_size} bytes"
            raise UnreadablePickle(f"{found} for storage {printable(key)} of {array.nbytes} bytes")
        _fill(array, archive.read(member), byteorder, unpickler.itemsizes[key])
    return content


def _stream_content(memory: mmap.mmap) -> Any:
    """Of the format before torch 1.6: five pickles, the last lists the storages; their bytes."""
    unpicklers = [Unpickler(memory, len(memory)) for _ in range(5)]
    _, protocol, _, content, keys = [unpickler.load() for unpickler in unpicklers]
    if protocol != _PROTOCOL_VERSION:
        raise UnreadablePickle(f"not of torch's protocol {_PROTOCOL_VERSION}")
    stored, itemsizes = unpicklers[3].stored, unpicklers[3].itemsizes
    strings = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not strings or sorted(keys) != sorted(stored):
        raise UnreadablePickle("the list of storages is not that of the tensors")
    for key in keys:
        count = int.from_bytes(memory.read(8), "little")
        if count * (itemsizes[key] or 1) != stored[key].nbytes:
            raise UnreadablePickle(f"storage {printable(key)} has another size than declared")
        _fill(stored[key], memory.read(stored[key].nbytes), "little", itemsizes[key])
    return content


def _fill(array: np.ndarray, content: bytes, byteorder: str, itemsize: int) -> None:
    if len(content) < array.nbytes:
        raise UnreadablePickle("cut within a storage")
    array[:] = np.frombuffer(content, np.uint8)
    if byteorder != sys.byteorder:
        if itemsize == 0:
            raise UnreadablePickle("numbers without a type, of another byte order")
        array.view(f"u{itemsize}").byteswap(inplace=True)


def _state_dicts(value: object) -> dict[Keys, dict[str, np.ndarray]]:
    """The dicts of tensors in a file, by the keys that lead to them; of equal ones the first."""
    if not isinstance(value, dict):
        raise UnreadablePickle(f"holds a {type(value).__name__}, not a dict of tensors")
    found: dict[Keys, dict[str, np.ndarray]] = {}
    seen: set[int | frozenset] = set()
    todo = collections.deque([((), value)])
    while todo:
        keys, held = todo.popleft()
        if id(held) in seen:
            continue
        names = {key: inner for key, inner in held.items() if isinstance(key, str)}
        tensors = {
            key: inner.array
            for key, inner in names.items()
            if isinstance(inner, Tensor) and inner.array is not None
        }
        same = frozenset((k, t.ctypes.data, t.shape, t.strides) for k, t in tensors.items())
        if tensors and same not in seen:
            found[keys] = tensors
        seen |= {id(held), same}
        if len(keys) < _MAX_DEPTH:
            todo += [((*keys, k), inner) for k, inner in names.items() if isinstance(inner, dict)]
    if not found:
        shown = ", ".join(printable(key) for key in list(value)[:20] if isinstance(key, str))
        raise UnreadablePickle(f"holds no tensors by name; its keys: {shown or 'none'}")
    return found
