"""Measures of label maps that counts of pixels do not show: edges and widths."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import numpy as np

VALUES = 256
# Upper bounds of widths in pixels.
WIDTHS = tuple(2**power for power in range(1, 12))


def _zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.int64)


@dataclass
class Structure:
    """Sums over label maps; `+=` adds those of another.

    Attributes:
        changes: Pairs of neighbouring pixels with different values.
        touching: For each value the changes that it takes part in.
        between: For each value its pixels that lie strictly between the values of their left and
            right, or upper and lower, neighbours. A label map that was resized bilinearly has them
            along all edges.
        widths: For each value its pixels by the width of its area there: the shorter of the
            horizontal and the vertical run of equal values; the last column is `WIDTHS[-1]` and
            more.
    """

    changes: int = 0
    touching: np.ndarray = field(default_factory=lambda: _zeros(VALUES))
    between: np.ndarray = field(default_factory=lambda: _zeros(VALUES))
    widths: np.ndarray = field(default_factory=lambda: _zeros(VALUES, len(WIDTHS) + 1))

    def __iadd__(self, other: Self) -> Self:
        self.changes += other.changes
        self.touching += other.touching
        self.between += other.between
        self.widths += other.widths
        return self

    def narrower_than(self, width: int) -> np.ndarray:
        """Returns the share of each value's pixels in areas narrower than a power of two."""
        total = self.widths.sum(1).clip(min=1)
        return self.widths[:, : WIDTHS.index(width) + 1].sum(1) / total


def structure(values: np.ndarray) -> Structure:
    """Measures a label map of uint8 `(height, width)`."""
    measured = Structure()
    between = np.zeros(values.shape, bool)
    for turned, inner in ((values, between[:, 1:-1]), (values.T, between[1:-1].T)):
        left, right = turned[:, :-1], turned[:, 1:]
        changed = left != right
        measured.changes += int(np.count_nonzero(changed))
        for side in (left[changed], right[changed]):
            measured.touching += np.bincount(side, minlength=VALUES)
        before, middle, after = turned[:, :-2], turned[:, 1:-1], turned[:, 2:]
        inner |= ((before < middle) & (middle < after)) | ((before > middle) & (middle > after))
    measured.between += np.bincount(values[between], minlength=VALUES)
    narrow = np.minimum(_runs(values), _runs(values.T).T)
    column = np.searchsorted(WIDTHS, narrow, side="right")
    cells = values * np.int64(len(WIDTHS) + 1) + column
    counts = np.bincount(cells.reshape(-1), minlength=VALUES * (len(WIDTHS) + 1))
    measured.widths += counts.reshape(VALUES, -1)
    return measured


def _runs(values: np.ndarray) -> np.ndarray:
    """The length of the horizontal run of equal values that each pixel is part of."""
    begins = np.ones(values.shape, bool)
    begins[:, 1:] = values[:, 1:] != values[:, :-1]
    starts = np.flatnonzero(begins)
    lengths = np.diff(starts, append=values.size)
    return np.repeat(lengths, lengths).reshape(values.shape)
