"""How well the edges of label maps lie on the edges of their images."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

REACH = 12  # pixels that a label map may be shifted by to be found
MIRRORS = ("left to right", "upside down", "by 180 degrees")
LARGEST = 512  # pixels of a side; of larger images every second or third is compared
COARSE = 24  # pixels
CLEAR = 0.04  # correlation of edges from which they belong together
MIN_PAIRS = 8


class Agreement(NamedTuple):
    """Correlations of an image's edges with those of its label map.

    Attributes:
        shifted: float `(2 * REACH + 1, 2 * REACH + 1)`, with the label map moved by -REACH..REACH
            pixels down and to the right; the centre is as it is.
        mirrored: With the label map mirrored, in the order of `MIRRORS`.
    """

    shifted: np.ndarray
    mirrored: np.ndarray


class Misalignment(NamedTuple):
    """How label maps should be changed to fit their images."""

    down: int = 0
    right: int = 0
    mirror: str = ""


def agreement(image: np.ndarray, values: np.ndarray) -> Agreement | None:
    """Compares an image of `(height, width, channels)` with its label map; None without edges."""
    step = -(-max(values.shape) // LARGEST)
    values = values[::step, ::step]
    grey = image[::step, ::step].mean(-1, dtype=np.float32)
    if min(values.shape) <= 2 * REACH + 2:
        return None
    across = values[1:-1, 2:] != values[1:-1, :-2]
    edges = (across | (values[2:, 1:-1] != values[:-2, 1:-1])).astype(np.float32)
    slopes = np.abs(grey[1:-1, 2:] - grey[1:-1, :-2]) + np.abs(grey[2:, 1:-1] - grey[:-2, 1:-1])
    slopes = np.minimum(slopes, np.percentile(slopes[::4, ::4], 98))
    if not edges.std() or not slopes.std():
        return None
    slopes = (slopes - slopes.mean()) / slopes.std()
    # Without waves longer than COARSE: objects in the middle agree wherever they are.
    spectrum = np.fft.rfft2(edges)
    down, right = np.fft.fftfreq(edges.shape[0]), np.fft.rfftfreq(edges.shape[1])
    spectrum[np.hypot(down[:, None], right) < 1 / COARSE] = 0
    fine = np.fft.irfft2(spectrum, edges.shape)
    deviation = fine.std() * edges.size
    spread = np.fft.irfft2(np.conj(spectrum) * np.fft.rfft2(slopes), edges.shape) / deviation
    shifted = np.roll(spread, (REACH, REACH), (0, 1))[: 2 * REACH + 1, : 2 * REACH + 1]
    flipped = (fine[:, ::-1], fine[::-1], fine[::-1, ::-1])
    return Agreement(shifted, np.array([np.vdot(slopes, one) for one in flipped]) / deviation)


def misalignment(found: list[Agreement]) -> Misalignment | None:
    """Returns the change that makes edges agree clearly better, in each half of the images."""
    if len(found) < MIN_PAIRS:
        return None
    whole, *halves = map(_misalignment, (found, found[0::2], found[1::2]))
    if None in (whole, *halves):
        return None
    near = all(
        one.mirror == whole.mirror
        and max(abs(one.down - whole.down), abs(one.right - whole.right)) <= 1
        for one in halves
    )
    return whole if near else None


def _misalignment(found: list[Agreement]) -> Misalignment | None:
    shifted = np.mean([one.shifted for one in found], 0)
    mirrored = np.mean([one.mirrored for one in found], 0)
    now = shifted[REACH, REACH]
    best = int(np.argmax(mirrored))
    if mirrored[best] > CLEAR and now < 0.5 * mirrored[best]:
        return Misalignment(mirror=MIRRORS[best])
    down, right = (int(i) - REACH for i in np.unravel_index(np.argmax(shifted), shifted.shape))
    peak, opposite = shifted.max(), shifted[REACH - down, REACH - right]
    # Both edges of a border between objects agree with the object's: a shift is one-sided.
    is_clear = peak > CLEAR and max(now, opposite) < 0.7 * peak
    if is_clear and max(abs(down), abs(right)) >= 2:
        return Misalignment(down, right)
    return None
