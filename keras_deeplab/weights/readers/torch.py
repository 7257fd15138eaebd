"""Reads the state dicts of `torch.save` without torch and without executing their pickles."""

from __future__ import annotations

import collections
import io
import mmap
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from keras_deeplab.files import check_unpacked
from keras_deeplab.names import first_few
from keras_deeplab.weights.checkpoint import may_hold
from keras_deeplab.weights.errors import UnreadableError
from keras_deeplab.weights.readers.torch_pickle import (
    Object,
    Storage,
    Tensor,
    Unpickler,
    tensor_of,
)

Keys = tuple[str, ...]
# What a file holds, and a function that reads a storage's content.
_Content = tuple[Any, Callable[[Storage], bytes]]

# The first pickle of the format before torch 1.6, and the second.
STREAM = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_PROTOCOL_VERSION = 1001
# Levels of dicts in which a state dict is looked for: "ema", then "module", say.
_MAX_DEPTH = 4


def read(path: Path) -> dict[Keys, dict[str, np.ndarray]]:
    """Reads the state dicts of a file by the keys that lead to them.

    Of equal ones the first is read.
    """
    size = path.stat().st_size
    content, stored = _zip_content(path) if zipfile.is_zipfile(path) else _stream_content(path)
    found = _state_dicts(content)
    tensors = [tensor for each in found.values() for tensor in each.values()]
    declared = sum(tensor.nbytes for tensor in tensors)
    if not may_hold(size, declared):
        raise UnreadableError(f"refused tensors of {declared} bytes from a file of {size} bytes")
    contents = {storage: stored(storage) for storage in {each.storage for each in tensors}}
    return {
        keys: {name: tensor.array(contents[tensor.storage]) for name, tensor in each.items()}
        for keys, each in found.items()
    }


def _zip_content(path: Path) -> _Content:
    """Of an archive with a pickle, `<name>/data.pkl`, and each storage as a member."""
    archive = zipfile.ZipFile(path)
    members = {member.filename: member for member in archive.infolist()}
    pickles = [name for name in members if name.endswith("/data.pkl")]
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in members:
        raise UnreadableError("TorchScript is a program: save model.state_dict() instead")
    check_unpacked(archive, path.stat().st_size)
    order = f"{folder}byteorder"
    if order in members and (found := archive.read(order)) != b"little":
        raise UnreadableError(f"its byte order must be little. Received: {found[:20]!r}")
    content = Unpickler(io.BytesIO(archive.read(pickles[0]))).load()

    def stored(storage: Storage) -> bytes:
        member = members.get(f"{folder}data/{storage.key}")
        if member is None or member.file_size != storage.nbytes:
            raise UnreadableError(f"no member of {storage.nbytes} bytes for {storage.key:.100}")
        return archive.read(member)

    return content, stored


def _stream_content(path: Path) -> _Content:
    """Of the format before torch 1.6: five pickles, the last lists the storages; their bytes."""
    with path.open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    unpicklers = [Unpickler(memory) for _ in range(5)]
    _, protocol, _, content, keys = [unpickler.load() for unpickler in unpicklers]
    if protocol != _PROTOCOL_VERSION:
        raise UnreadableError(f"not of torch's protocol {_PROTOCOL_VERSION}")
    storages = unpicklers[3].storages
    strings = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not strings or sorted(keys) != sorted(storages):
        raise UnreadableError("the list of storages is not that of the tensors")
    places = {}
    end = memory.tell()
    for key in keys:
        if int.from_bytes(memory[end : end + 8], "little") != storages[key].count:
            raise UnreadableError(f"storage {key:.100} has another size than declared")
        places[key] = slice(end + 8, end + 8 + storages[key].nbytes)
        end = places[key].stop
    if end > len(memory):
        raise UnreadableError("cut within a storage")
    return content, lambda storage: memory[places[storage.key]]


def _state_dicts(value: object) -> dict[Keys, dict[str, Tensor]]:
    """The dicts of tensors in a file, by the keys that lead to them; of equal ones the first."""
    found: dict[Keys, dict[str, Tensor]] = {}
    seen: set[int | frozenset] = set()
    todo: collections.deque[tuple[Keys, Any]] = collections.deque([((), value)])
    while todo:
        keys, held = todo.popleft()
        if not isinstance(held, Object) or id(held) in seen:
            continue
        names = held.named()
        tensors = {key: t for key, each in names.items() if (t := tensor_of(each))}
        same = frozenset(tensors.items())
        if tensors and same not in seen:
            found[keys] = tensors
        seen |= {id(held), same}
        if len(keys) < _MAX_DEPTH:
            todo += [((*keys, key), inner) for key, inner in names.items()]
    if not found:
        names = list(value.named()) if isinstance(value, Object) else []
        raise UnreadableError(
            f"it holds no tensors by name; its keys: {first_few(names) or 'none'}"
        )
    return found
