"""Generated images of textures: every class is known by its pattern alone."""

from __future__ import annotations

import numpy as np
from PIL import Image

from keras_deeplab import data
from keras_deeplab.data.shapes import photographed
from training.drawn import Drawn

CLASSES = ("stripes", "zigzag", "checks", "dots", "bricks", "clouds")
SIDES = (128, 192)  # of an image, pixels
PERIODS = (7, 14)  # of a pattern, pixels
REGIONS = (4, 7)
WARP = 10  # pixels by which the borders of regions are curved


class Textures(Drawn):
    """Images of 4 to 7 regions, each of one of six patterns.

    Period, direction, colours and light do not depend on the pattern, and no line separates two
    regions: a pixel's class is the pattern around it.

    Args:
        train, val: Number of images.
    """

    info = data.DatasetInfo(CLASSES)

    def __init__(self, train: int = 120, val: int = 60) -> None:
        super().__init__(train, val)

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draws an image and its label (see `Drawn.draw`)."""
        size = tuple(rng.integers(SIDES[0], SIDES[1] + 1, 2).tolist())
        grid = np.mgrid[: size[0], : size[1]].astype(np.float32)
        warped = grid + WARP * np.stack([_clouds(rng, size, 40) for _ in range(2)])
        centres = rng.uniform(0, size, (rng.integers(REGIONS[0], REGIONS[1] + 1), 2))
        distances = [np.hypot(*(warped - centre[:, None, None])) for centre in centres]
        region = np.argmin(distances, 0)
        image, label = np.zeros((*size, 3), np.float32), np.zeros(size, np.uint8)
        for number in range(len(centres)):
            inside = region == number
            kind = int(rng.integers(len(CLASSES)))
            image[inside], label[inside] = _surface(rng, grid, kind)[inside], kind
        return photographed(rng, image, grid / max(size)), label


def _surface(rng: np.random.Generator, grid: np.ndarray, kind: int) -> np.ndarray:
    """A pattern of two colours, with its own period and direction, float32."""
    angle, period = rng.uniform(0, 2 * np.pi), rng.uniform(*PERIODS)
    cos, sin = np.cos(angle), np.sin(angle)
    down, right = np.tensordot([[cos, -sin], [sin, cos]], grid / period, 1)
    shifted = right / 2 + np.floor(down) % 2 / 2  # every second row of bricks by half of one
    pattern = {
        "stripes": 0.5 + 0.5 * np.sin(2 * np.pi * down),
        "zigzag": 0.5 + 0.5 * np.sin(2 * np.pi * (down + abs(right % 2 - 1))),
        "checks": (np.floor(2 * down) + np.floor(2 * right)) % 2,
        "dots": np.hypot(down % 1 - 0.5, right % 1 - 0.5) < 0.3,
        "bricks": (down % 1 > 0.2) & (shifted % 1 > 0.1),
        "clouds": 0.5 + 0.5 * _clouds(rng, down.shape, period / 2),
    }[CLASSES[kind]]
    return rng.uniform(20, 120, 3) + pattern[..., None] * rng.uniform(60, 120, 3)


def _clouds(rng: np.random.Generator, size: tuple[int, int], period: float) -> np.ndarray:
    """Smooth noise between about -1 and 1."""
    coarse = rng.uniform(-1, 1, [int(side / period) + 2 for side in size]).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC))
