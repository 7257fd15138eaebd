"""Images cut into windows: each pixel once, blended with falling weights, in bounded memory."""

from __future__ import annotations

import numpy as np
import pytest

from keras_deeplab.inference import windows
from keras_deeplab.inference.windows import blended, default_window, starts

SIZES = [
    (300, 128, 32),
    (299, 128, 0),
    (301, 256, 255),
    (128, 128, 64),
    (90, 20, 19),
    (300, 64, 16),
]
SIZES += [(7, 9, 3)]


@pytest.mark.parametrize("size, length, overlap", SIZES)
def test_windows_cover_a_side_on_the_grid_and_overlap(size, length, overlap):
    for grid in (32, 1):
        begins = starts(size, length, overlap, grid)
        ends = [min(begin + length, size) for begin in begins]
        assert begins[0] == 0
        assert ends[-1] == size
        assert all(end - begin >= overlap for end, begin in zip(ends, begins[1:], strict=False))
        if length >= overlap + 32 and length >= 128:
            assert all(begin % grid == 0 for begin in begins)
        if length < 128:  # of which the grid would leave out too large a share
            assert begins == starts(size, length, overlap, 1)
        if grid == 1 and size >= length:
            assert all(end - begin == length for begin, end in zip(begins, ends, strict=True))


@pytest.mark.parametrize("size", [(61, 83), (20, 83), (61, 16), (9, 9)])
@pytest.mark.parametrize("overlap", [0, 5, 15])
def test_sums_are_those_of_all_windows(size, overlap):
    """Against a plain sum in an array of the image's size; each window has its own scores."""
    random, image = np.random.default_rng(0), np.zeros((*size, 3), np.uint8)
    scores = []

    def of_window(pixels):
        scores.append(random.random((*pixels.shape[:2], 4)).astype(np.float32))
        return scores[-1].copy()

    found, seen = np.zeros((*size, 4), np.float32), np.zeros(size, int)
    for part, sums in blended(of_window, image, (16, 24), overlap):
        found[part] = sums
        seen[part] += 1
    assert (seen == 1).all()
    expected, given = np.zeros_like(found), iter(scores)
    for top in starts(size[0], 16, overlap):
        for left in starts(size[1], 24, overlap):
            one = next(given)
            ramps = [
                np.minimum(np.minimum(np.arange(1, n + 1), np.arange(n, 0, -1)) / (overlap + 1), 1)
                for n in one.shape[:2]
            ]
            weights = ramps[0][:, None, None] * ramps[1][:, None]
            expected[top : top + 16, left : left + 24] += one * weights
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_default_window_is_the_image_or_as_large_as_the_memory(monkeypatch):
    monkeypatch.setattr(windows, "available_memory", lambda: 2**33)
    assert default_window((3000, 4000), 100) == (3000, 4000)
    assert default_window((3000, 4000), 384) == (1568, 1440)  # of 2048 at most
    assert default_window((9000, 500), 4000)[1] == 704  # the largest square that fits
    monkeypatch.setattr(windows, "available_memory", lambda: 0)
    assert default_window((3000, 256), 100) == (256, 256)


@pytest.mark.parametrize("given", [None, 0, 64])
@pytest.mark.parametrize("largest", [256, 512, 1024, 2048])
def test_equal_windows_are_as_few_as_the_largest_and_smaller(monkeypatch, largest, given):
    monkeypatch.setattr(windows, "available_memory", lambda: 2 * largest**2)
    overlap, smaller = min(128, largest // 4) if given is None else given, []
    for side in range(largest + 1, 12 * largest, 37):
        length = default_window((side, side), 1, given)[0]
        assert length % 32 == 0
        counts = [len(starts(side, one, overlap)) for one in (length, largest)]
        assert counts[0] == counts[1]
        assert counts[0] * length < side + counts[0] * (overlap + 32)
        smaller.append(length / largest)
    assert min(smaller) <= 0.75
    assert max(smaller) == 1
