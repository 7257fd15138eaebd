from __future__ import annotations

import math

import keras
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


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 4), (7, 5), (13, 13), (12, 31)])
@pytest.mark.parametrize("levels", [(4, 2, 1), (6, 3, 2, 1)])
@pytest.mark.parametrize("mode", ["max", "average"])
def test_bins_are_those_of_explicit_loops(size, levels, mode):
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype("float32")
    output = SpatialPyramidPooling2D(levels, mode)(x)
    np.testing.assert_allclose(output, by_loops(x, levels, mode), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(5, 9), (6, 3), (17, 2)])
def test_every_pixel_is_in_a_bin_of_every_level(size):
    for bins in (1, 2, 3, 4, 6):
        layer = SpatialPyramidPooling2D((bins,))
        for i in range(size[0]):
            for j in range(size[1]):
                x = np.zeros((1, *size, 1), "float32")
                x[0, i, j] = 1
                assert np.asarray(layer(x)).max() == 1


@pytest.mark.parametrize("levels, length", [((4, 2, 1), 21), ((6, 3, 2, 1), 50), ((3,), 9)])
def test_length_is_static_for_any_size(levels, length):
    inputs = keras.Input((None, None, 5))
    x = SpatialPyramidPooling2D(levels)(inputs)
    assert x.shape == (None, 5 * length)
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    for size in ((1, 1), (8, 3)):
        assert model(np.ones((3, *size, 5), "float32")).shape == (3, 2)
