from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keras_deeplab import data

SIZE = (12, 16)


@pytest.fixture
def draw(tmp_path) -> Callable:
    """Writes an image of random pixels or the given array below `tmp_path` and returns it."""

    def write(path: str, pixels=None, palette=None) -> np.ndarray:
        if pixels is None:
            pixels = np.random.default_rng(len(path)).integers(0, 256, (*SIZE, 3), np.uint8)
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(np.asarray(pixels, np.uint8))
        if palette is not None:
            image.putpalette([part for color in palette for part in color])
        image.save(tmp_path / path)
        return np.asarray(pixels)

    return write


@pytest.fixture
def values() -> Callable:
    """A label map of vertical stripes of values."""

    def stripes(*found: int) -> np.ndarray:
        across = np.array(found, np.uint8)[np.arange(SIZE[1]) * len(found) // SIZE[1]]
        return np.broadcast_to(across, SIZE).copy()

    return stripes


@pytest.fixture
def read() -> Callable:
    """Opens a source, audits it, and returns the names and label maps of each split."""

    def opened(name: str | Path) -> tuple[data.Source, dict[str, dict[str, np.ndarray]]]:
        source = data.open_source(name)
        data.audit(source)
        found = {}
        for split in source.splits:
            pairs = source.dataset(split).as_numpy_iterator()
            labels = [label for image, label in pairs if image.shape == (*label.shape, 3)]
            found[split] = dict(zip(source.names(split), labels, strict=True))
        return source, found

    return opened
