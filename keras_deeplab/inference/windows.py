"""Large images cut into overlapping windows, and their probabilities blended."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from keras_deeplab.data.pipeline import GRID
from keras_deeplab.memory import available_memory

OVERLAP = 128
MEMORY = 2**31  # bytes that a prediction takes at most by default
SMALLEST, LARGEST = 256, 2048  # sides of the windows chosen here

Size = tuple[int, int]
Window = tuple[slice, slice]


class Rows(Protocol):
    """An image `(height, width, channels)` that is read from its top to its bottom."""

    shape: tuple[int, int, int]

    def __getitem__(self, window: Window) -> np.ndarray:
        """Returns the pixels of a window."""


def default_window(size: Size, bytes_per_pixel: int, overlap: int | None = None) -> Size:
    """Returns the window for an image: its own size if that fits into the memory, or a part.

    Windows are equal, and as many along a side as of the largest square that fits: of that square
    itself, the last two of a row may overlap nearly whole.
    """
    free = min(MEMORY, available_memory() // 2)
    if math.prod(size) * bytes_per_pixel <= free:
        return size
    largest = math.isqrt(free // bytes_per_pixel) // GRID * GRID
    largest = min(max(largest, SMALLEST), LARGEST)
    if overlap is None:
        overlap = min(OVERLAP, largest // 4)
    height, width = (_equal_parts(side, largest, overlap) for side in size)
    return height, width


def _equal_parts(side: int, largest: int, overlap: int) -> int:
    """Returns the smallest length of which as few windows cover a side as of the largest."""
    if side <= largest:
        return largest
    count = -(-(side - overlap) // (largest - overlap))
    return min(largest, -(-(side + (count - 1) * overlap) // count // GRID) * GRID)


def starts(size: int, length: int, overlap: int, grid: int = GRID) -> list[int]:
    """Returns where windows begin along a side: at multiples of `grid` where that is possible."""
    if length >= size:
        return [0]
    grid = grid if length >= max(4 * grid, overlap + grid) else 1
    step, left_over = (length - overlap) // grid * grid, size - length
    return [*range(0, left_over, step), -(-left_over // grid) * grid]


def blended(
    scores: Callable[[np.ndarray], np.ndarray],
    image: Rows,
    window: Size,
    overlap: int,
    grid: int = GRID,
) -> Iterator[tuple[Window, np.ndarray]]:
    """Yields weighted sums of the scores of windows, in parts that cover the image once.

    The weights of a window fall off linearly to its borders, where the network sees little of the
    surroundings. Only the overlap with the windows to the right and below is kept.
    """
    (height, width), (tall, wide) = image.shape[:2], window
    lefts = starts(width, wide, overlap, grid)
    tops = starts(height, tall, overlap, grid)
    below: np.ndarray | None = None
    for top, next_top in zip(tops, [*tops[1:], height], strict=True):
        rows, above, below = slice(top, min(top + tall, height)), below, None
        right: np.ndarray | None = None
        for left, next_left in zip(lefts, [*lefts[1:], width], strict=True):
            columns = slice(left, min(left + wide, width))
            sums = scores(image[rows, columns])
            sums *= (
                _ramp(sums.shape[0], overlap)[:, None, None]
                * _ramp(sums.shape[1], overlap)[:, None]
            )
            if right is not None:
                sums[:, : right.shape[1]] += right
            right = sums[:, next_left - left :].copy()
            sums, part = sums[:, : next_left - left], slice(left, next_left)
            if above is not None:
                sums[: len(above)] += above[:, part]
            if below is None:
                below = np.empty((rows.stop - next_top, width, sums.shape[2]), np.float32)
            below[:, part] = sums[next_top - top :]
            yield (slice(top, next_top), part), sums[: next_top - top]


def _ramp(length: int, overlap: int) -> np.ndarray:
    place = np.arange(length, dtype=np.float32)
    return np.minimum(1, (1 + np.minimum(place, length - 1 - place)) / (overlap + 1))
