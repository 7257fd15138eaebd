"""Images that occur twice, found by hashes of their coarse brightness."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

SIDE = 16
HALF = SIDE * SIDE  # bits of each direction
# Bits in which copies differ at most, after being stored as JPEG or resized.
NEAR = 20
# Bits that are set in both directions of images with enough contrast to be compared.
VARIED = (HALF // 8, HALF - HALF // 8)
_COMPARED = 2**22  # pairs at a time


def difference_hash(pixels: np.ndarray) -> bytes:
    """Returns 512 bits: whether parts of a coarse image are brighter than their neighbours.

    The first half compares with the right neighbours, the second with the lower ones: stripes,
    which alias with the coarse pixels, make images alike in one of them only.

    Args:
        pixels: uint8 `(height, width, channels)`.
    """
    step = max(1, min(pixels.shape[:2]) // (8 * SIDE))
    grey = Image.fromarray(pixels[::step, ::step].mean(-1).astype(np.uint8))
    coarse = np.asarray(grey.resize((SIDE + 1, SIDE + 1), Image.Resampling.BOX), np.int16)
    across, down = coarse[:-1, :-1] > coarse[:-1, 1:], coarse[:-1, :-1] > coarse[1:, :-1]
    return np.packbits([across, down]).tobytes()


def near_pairs(hashes: list[bytes]) -> Iterator[tuple[int, int]]:
    """Yields the positions of hashes that differ in few bits, without those of plain images."""
    words = np.frombuffer(b"".join(hashes), np.uint64).reshape(len(hashes), 2, HALF // 64)
    set_bits = np.bitwise_count(words).sum(2, dtype=np.int64)
    varied = np.flatnonzero(((set_bits >= VARIED[0]) & (set_bits <= VARIED[1])).all(1))
    words = words[varied].reshape(len(varied), 2 * HALF // 64)
    step = max(1, _COMPARED // max(1, len(words)))
    for first in range(0, len(words), step):
        rows = words[first : first + step]
        distance = np.zeros((len(rows), len(words)), np.uint16)
        for word in range(words.shape[1]):
            distance += np.bitwise_count(rows[:, None, word] ^ words[None, :, word])
        one, other = np.nonzero(distance <= NEAR)
        later = other > one + first
        pairs = np.stack([varied[one[later] + first], varied[other[later]]], 1)
        yield from map(tuple, pairs.tolist())
