"""Converted weights as they are kept beside a download."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from keras_deeplab.weights import Source, WeightsError

SOURCE = Source(
    "file", "a network", {"a/kernel": np.arange(6, dtype="float32")}, left_over=("b",), notes=("c",)
)


def test_what_is_written_comes_back(tmp_path):
    path = tmp_path / "a.npz"
    SOURCE.write(path)
    found = Source.read(path)
    np.testing.assert_array_equal(found.values["a/kernel"], SOURCE.values["a/kernel"])
    assert (found.title, found.left_over, found.notes) == ("a network", ("b",), ("c",))


def test_packed_members_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, source=np.array("{}"), zeros=np.zeros(1_000_000))
    with pytest.raises(WeightsError, match="its members are compressed"):
        Source.read(path)


def with_shape(path: Path, shape: tuple[int, ...]) -> Path:
    """An array of 24 bytes that declares another shape."""
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        content, {"descr": "<f4", "fortran_order": False, "shape": shape}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", content.getvalue() + struct.pack("<6f", *range(6)))
    return path


@pytest.mark.parametrize("shape", [(7,), (1 << 33,), (1 << 40, 1 << 40)])
def test_arrays_that_declare_more_than_is_there_are_refused(tmp_path, shape):
    with pytest.raises(WeightsError, match="it is damaged"):
        Source.read(with_shape(tmp_path / "a.npz", shape))
