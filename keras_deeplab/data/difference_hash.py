"""Images that occur twice, found by hashes of their coarse brightness."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

SIDE = 16
BITS = SIDE * SIDE
# Bits in which copies differ at most, after being stored as JPEG or resized.
NEAR = 10
# Bits that are set in images with enough contrast to be compared.
VARIED = (BITS // 8, BITS - BITS // 8)
_COMPARED = 2**22  # pairs at a time


def difference_hash(pixels: np.ndarray) -> bytes:
    """Returns 256 bits: whether each part of a coarse image is brighter than its right neighbour.

    Args:
        pixels: uint8 `(height, width, channels)`.
    """
    step = max(1, min(pixels.shape[:2]) // (8 * SIDE))
    grey = Image.fromarray(pixels[::step, ::step].mean(-1).astype(np.uint8))
    coarse = np.asarray(grey.resize((SIDE + 1, SIDE), Image.Resampling.BOX), np.int16)
    return np.packbits(coarse[:, :-1] > coarse[:, 1:]).tobytes()


def near_pairs(hashes: list[bytes]) -> Iterator[tuple[int, int]]:
    """Yields the positions of hashes that differ in few bits, without those of plain images."""
    words = np.frombuffer(b"".join(hashes), np.uint64).reshape(len(hashes), BITS // 64)
    set_bits = np.bitwise_count(words).sum(1, dtype=np.int64)
    varied = np.flatnonzero((set_bits >= VARIED[0]) & (set_bits <= VARIED[1]))
    words = words[varied]
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
