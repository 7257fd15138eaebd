from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from keras_deeplab.weights.errors import WeightsError
from keras_deeplab.weights.readers import safetensors

ARRAYS = {
    "float32": ("F32", np.arange(6, dtype="float32").reshape(2, 3)),
    "float16": ("F16", np.arange(3, dtype="float16")),
    "bfloat16": ("BF16", np.arange(4).astype(tf.bfloat16.as_numpy_dtype)),
    "long": ("I64", np.array(-7)),
    "bool": ("BOOL", np.array([True, False, True])),
    "empty": ("F32", np.zeros((0, 3), "float32")),
}


def encoded(arrays: dict[str, tuple[str, np.ndarray]]) -> bytes:
    header, stored = {"__metadata__": {"format": "pt"}}, b""
    for name, (kind, array) in sorted(arrays.items(), key=lambda item: -item[1][1].itemsize):
        ends = [len(stored), len(stored) + array.nbytes]
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": ends}
        stored += array.tobytes()
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + stored


def refusal(path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        safetensors.read(path)
    assert str(caught.value).startswith(f"{path}: ")
    return caught.value.reason


@pytest.fixture
def path(tmp_path) -> Path:
    path = tmp_path / "a.safetensors"
    path.write_bytes(encoded(ARRAYS))
    return path


def test_values_types_and_shapes(path):
    assert safetensors.is_safetensors_file(path)
    found = safetensors.read(path)
    path.write_bytes(bytes(path.stat().st_size))  # the arrays outlive the file
    assert set(found) == set(ARRAYS)
    for name, (_, array) in ARRAYS.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].shape == array.shape, name
        np.testing.assert_array_equal(found[name], array, name)


def test_a_file_cut_anywhere_is_refused(path):
    whole = path.read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    for end in range(0, len(whole), 7):
        path.write_bytes(whole[:end])
        assert "damaged or cut" in refusal(path)
        assert safetensors.is_safetensors_file(path) == (end >= header)


def test_other_files(path):
    for content in (b"", b"\x03\0\0\0\0\0\0\0{}", b"\xff" * 8 + b"{}", b"PK\x03\x04" + bytes(99)):
        path.write_bytes(content)
        assert not safetensors.is_safetensors_file(path)
        refusal(path)


def test_files_of_nothing_and_of_types_that_numpy_has_not(path):
    path.write_bytes(encoded({}))
    assert refusal(path) == "it holds no tensors"
    path.write_bytes(encoded({"a": ("F8_E4M3", np.zeros(4, "uint8"))}))
    assert "of a type that NumPy lacks" in refusal(path)


@pytest.mark.parametrize(
    "shape, ends",
    [
        ((6,), (0, 20)),
        ((1 << 40, 1 << 40), (0, 24)),
        ((1 << 62, 0, 1 << 62), (24, 24)),
        ((6,), (1 << 50, (1 << 50) + 24)),
        ((-6,), (0, 24)),
    ],
)
def test_shapes_and_offsets_that_are_not_the_file_s_are_refused(shape, ends, path):
    header = {"a": {"dtype": "F32", "shape": shape, "data_offsets": ends}}
    header["b"] = {"dtype": "F32", "shape": [6], "data_offsets": [0, 24]}  # over or before it
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(24))
    refusal(path)


def test_without_the_package_the_error_says_what_to_install(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"pip install keras_deeplab\[safetensors\]"):
        safetensors.read(path)
