from __future__ import annotations

import math

import numpy as np
import pytest

from keras_deeplab.layers import SpatialPyramidPooling2D


def by_loops(x: np.ndarray, levels: tuple[int, ...], mode: str) -> np.ndarray:
    height, width = x.shape[1:3]
    values = []
    for bins in levels:
        for row in range(bins):
            top, bottom = math.floor(row * height / bins), math.ceil((row + 1) * height / bins)
            for column in range(bins):
                left = math.floor(column * width / bins)
                right = math.ceil((column + 1) * width / bins)
                part = x[:, top:bottom, left:right]
                values.append(part.max(axis=(1, 2)) if mode == "max" else part.mean(axis=(1, 2)))
    return np.concatenate(values, axis=1)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 5), (12, 31)])
@pytest.mark.parametrize("mode", ["max", "average"])
def test_bins_are_those_of_explicit_loops(size, mode):
    levels = (6, 4, 3, 1)
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype("float32")
    output = SpatialPyramidPooling2D(levels, mode)(x)
    np.testing.assert_allclose(output, by_loops(x, levels, mode), rtol=1e-4, atol=1e-5)
