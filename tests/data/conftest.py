from __future__ import annotations

import json
import os
from collections.abc import Callable

import numpy as np
import pytest


@pytest.fixture
def write_settings() -> Callable:
    """Writes a dataset.json."""
    return lambda root, **settings: (root / "dataset.json").write_text(json.dumps(settings))


@pytest.fixture
def make_folder(tmp_path, write_pair, write_settings) -> Callable:
    """Writes a data set of one pair, train/a, with a dataset.json and returns its folder."""

    def make(label: np.ndarray, *arrays: np.ndarray, **settings):
        write_pair(tmp_path, "train", "a", np.asarray(label), *arrays)
        write_settings(tmp_path, **settings)
        return tmp_path

    return make


@pytest.fixture
def latin_name(tmp_path) -> str:
    """A file name in Latin-1, which is not UTF-8."""
    name = os.fsdecode(b"caf\xe9")
    try:
        (tmp_path / name).touch()
    except OSError:
        pytest.skip("requires a file system that accepts names that are not UTF-8")
    (tmp_path / name).unlink()
    return name


@pytest.fixture
def blocks() -> np.ndarray:
    """A label map of 24x32 with the values 0, 1, 2 and 255."""
    return np.kron(
        np.array([[0, 1, 2, 0], [1, 2, 255, 0], [2, 2, 1, 1]], np.uint8), np.ones((8, 8), np.uint8)
    )
