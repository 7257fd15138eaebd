from __future__ import annotations

import math

import numpy as np
import pytest
from layer_checks import picture

from keras_deeplab.layers import SpatialPyramidPooling2D


def by_loops(x: np.ndarray, levels: tuple[int, ...], mode: str) -> np.ndarray:
    """The bins of the paper's section 2.2, one by one."""

    def bins_of(side: int, bins: int) -> list[slice]:
        borders = [(i * side / bins, (i + 1) * side / bins) for i in range(bins)]
        return [slice(math.floor(begin), math.ceil(end)) for begin, end in borders]

    parts = [
        x[:, rows, columns]
        for bins in levels
        for rows in bins_of(x.shape[1], bins)
        for columns in bins_of(x.shape[2], bins)
    ]
    reduce = np.max if mode == "max" else np.mean
    return np.concatenate([reduce(part, axis=(1, 2)) for part in parts], axis=1)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 5), (12, 31)])
@pytest.mark.parametrize("mode", ["max", "average"])
def test_bins_are_those_of_explicit_loops(size, mode):
    levels, x = (6, 4, 3, 1), picture(*size)
    output = SpatialPyramidPooling2D(levels, mode)(x)
    np.testing.assert_allclose(output, by_loops(x, levels, mode), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["max", "average"])
def test_sums_of_a_large_map_do_not_overflow_in_half_precision(mode):
    x = np.full((1, 400, 400, 1), 200, np.float16)
    found = SpatialPyramidPooling2D((2, 1), mode, dtype="mixed_float16")(x)
    np.testing.assert_array_equal(found, np.full((1, 5), 200))
