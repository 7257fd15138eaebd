"""Files of `torch.save` made by hand, opcode by opcode, for what torch itself would not write."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from keras_deeplab.weights.errors import WeightsError, reading
from keras_deeplab.weights.readers import torch

ORDERED = b"ccollections\nOrderedDict\n"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"


def plain(value: object) -> bytes:
    """Pushes a plain value."""
    return pickle.dumps(value, 2)[2:-1]


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + b"(" + b"".join(arguments) + b"tR"


def storage(
    key: str, count: object, kind: bytes = b"ctorch\nFloatStorage\n", *view: bytes
) -> bytes:
    words = (plain("storage"), kind, plain(key), plain("cpu"), plain(count), *view)
    return b"(" + b"".join(words) + b"tQ"


def tensor(stored: bytes, offset: object, shape: object, strides: object) -> bytes:
    place = (plain(offset), plain(shape), plain(strides))
    return call(TENSOR, stored, *place, b"\x89", call(ORDERED))


def dict_of(**items: bytes) -> bytes:
    return b"}(" + b"".join(plain(key) + item for key, item in items.items()) + b"u"


def state_dict(arrays: dict[str, np.ndarray], first: int = 0) -> tuple[bytes, dict[str, bytes]]:
    """A dict of float32 tensors, and their storages by keys that count from `first`."""
    items, storages = {}, {}
    for key, (name, array) in enumerate(arrays.items(), first):
        strides = tuple(stride // 4 for stride in np.empty(array.shape, "float32").strides)
        items[name] = tensor(storage(str(key), array.size), 0, array.shape, strides)
        storages[str(key)] = np.asarray(array, "<f4").tobytes()
    return dict_of(**items), storages


def write_zip(path: Path, body: bytes, byteorder: str = "little", **storages: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + body + b".")
        archive.writestr("archive/byteorder", byteorder)
        for key, stored in storages.items():
            archive.writestr(f"archive/data/{key}", stored)
    return path


def write_stream(path: Path, body: bytes, itemsize: int = 4, **storages: bytes) -> Path:
    parts = [pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2), pickle.dumps({}, 2)]
    parts += [b"\x80\x02" + body + b".", pickle.dumps(list(storages), 2)]
    for stored in storages.values():
        parts += [(len(stored) // itemsize).to_bytes(8, "little"), stored]
    path.write_bytes(b"".join(parts))
    return path


def read(path: Path) -> dict[str, np.ndarray]:
    """The first state dict of a file."""
    with reading(path):
        return next(iter(torch.read(path).values()))


def refusal(path: Path) -> str:
    """Why a file is refused."""
    with pytest.raises(WeightsError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    return caught.value.reason
