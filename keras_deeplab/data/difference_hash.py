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


def near_pairs(hashes: list[bytes]) -> Iterator[np.ndarray]:
    """Yields positions of hashes that differ in few bits `(pairs, 2)`, without plain images."""
    words, varied = _varied(hashes)
    some = words[:, :: HALF // 64]  # one word of each direction, in which few pairs are near
    for first, distance in _distances(some, some, only_later=True):
        one, other = np.array(np.nonzero(np.triu(distance <= NEAR, 1))) + first
        bits = np.zeros(len(one), np.uint16)
        for word in words.T:
            bits += np.bitwise_count(word[one] ^ word[other])
        yield np.stack([varied[one[bits <= NEAR]], varied[other[bits <= NEAR]]], 1)


def nearest(hashes: list[bytes], others: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Returns positions of hashes, and the bits in which the nearest other one differs.

    The bits are a share of the median of all others: what two frames of a recording have in common
    is measured against what the images of this data set have in common anyway. Plain images and
    copies are left out.
    """
    (words, varied), (other_words, _) = _varied(hashes), _varied(others)
    if not (len(words) and len(other_words)):
        return varied[:0], np.zeros(0)
    least, median = (np.zeros(len(words)) for _ in range(2))
    for first, distance in _distances(words, other_words):
        rows = slice(first, first + len(distance))
        least[rows], median[rows] = distance.min(1), np.median(distance, 1)
    kept = least > NEAR
    return varied[kept], least[kept] / np.maximum(1, np.median(median))


def _varied(hashes: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the words of the hashes with enough contrast, and their positions."""
    words = np.frombuffer(b"".join(hashes), np.uint64).reshape(len(hashes), 2, HALF // 64)
    set_bits = np.bitwise_count(words).sum(2, dtype=np.int64)
    varied = np.flatnonzero(((set_bits >= VARIED[0]) & (set_bits <= VARIED[1])).all(1))
    return words[varied].reshape(len(varied), 2 * HALF // 64), varied


def _distances(
    words: np.ndarray, others: np.ndarray, only_later: bool = False
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the position of some rows and the bits in which they differ from all others.

    With `only_later` the others begin at that position.
    """
    step = max(1, _COMPARED // max(1, len(others)))
    for first in range(0, len(words), step):
        rows = words[first : first + step]
        compared = others[first:] if only_later else others
        distance = np.zeros((len(rows), len(compared)), np.uint16)
        for word in range(words.shape[1]):
            distance += np.bitwise_count(rows[:, None, word] ^ compared[None, :, word])
        yield first, distance
