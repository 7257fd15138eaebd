"""The arrays in a `.keras` file, read without its model."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import h5py
import numpy as np


def arrays(path: Path) -> dict[str, np.ndarray]:
    """Every array of weights and optimizer, by its place in the file."""
    found = {}

    def take(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    with zipfile.ZipFile(path) as archive:
        stored = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(stored) as file:
        file.visititems(take)
    return found


def assert_same_arrays(path: Path, other: Path) -> None:
    """Compares two files bit for bit."""
    ours, theirs = arrays(path), arrays(other)
    assert ours.keys() == theirs.keys()
    assert len(ours) > 7
    for place, array in ours.items():
        np.testing.assert_array_equal(array, theirs[place], err_msg=place)
