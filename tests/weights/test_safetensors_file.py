from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from keras_deeplab import weights
from keras_deeplab.weights import WeightsError
from keras_deeplab.weights.readers.state_dict import read_safetensors

ARRAYS = {
    "float32": ("F32", np.arange(6, dtype="float32").reshape(2, 3)),
    "bfloat16": ("BF16", np.arange(4).astype(tf.bfloat16.as_numpy_dtype)),
    "long": ("I64", np.array(-7)),
    "empty": ("F32", np.zeros((0, 3), "float32")),
}


def write(path: Path, header: dict, stored: bytes) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + stored)
    return path


@pytest.fixture
def path(tmp_path) -> Path:
    header, stored = {"__metadata__": {"format": "pt"}}, b""
    for name, (kind, array) in sorted(ARRAYS.items(), key=lambda item: -item[1][1].itemsize):
        ends = [len(stored), len(stored) + array.nbytes]
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": ends}
        stored += array.tobytes()
    return write(tmp_path / "a.safetensors", header, stored)


def test_values_types_and_shapes(path):
    found = read_safetensors(path)
    path.write_bytes(bytes(path.stat().st_size))  # the arrays outlive the file
    assert set(found) == set(ARRAYS)
    for name, (_, array) in ARRAYS.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].shape == array.shape, name
        np.testing.assert_array_equal(found[name], array, name)


def test_a_file_cut_anywhere_is_refused(path):
    whole = path.read_bytes()
    for end in range(9, len(whole), 7):
        path.write_bytes(whole[:end])
        with pytest.raises(WeightsError, match=r"a\.safetensors: it cannot be read: .*[Hh]eader"):
            weights.open_checkpoint(path)


@pytest.mark.parametrize(
    "kind, shape, ends",
    [
        ("F32", (6,), (0, 20)),
        ("F32", (1 << 40, 1 << 40), (0, 24)),
        ("F32", (1 << 62, 0, 1 << 62), (24, 24)),
        ("F32", (6,), (1 << 50, (1 << 50) + 24)),
        ("F32", (-6,), (0, 24)),
        ("F8_E4M3", (24,), (24, 48)),  # which NumPy lacks
    ],
)
def test_shapes_offsets_and_types_that_are_not_the_file_s_are_refused(kind, shape, ends, tmp_path):
    header = {"a": {"dtype": kind, "shape": shape, "data_offsets": ends}}
    header["b"] = {"dtype": "F32", "shape": [6], "data_offsets": [0, 24]}  # over or before it
    path = write(tmp_path / "a.safetensors", header, bytes(24 if kind == "F32" else 48))
    with pytest.raises(WeightsError, match="it cannot be read: "):
        weights.open_checkpoint(path)


def test_without_the_package_the_error_says_what_to_install(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"pip install keras_deeplab\[safetensors\]"):
        weights.open_checkpoint(path)
