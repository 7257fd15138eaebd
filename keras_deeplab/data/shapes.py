"""Generated images of shapes: data sets without a download."""

from __future__ import annotations

import os
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image, ImageFilter

from keras_deeplab import validation
from keras_deeplab.data.source import IGNORE_LABEL, DatasetInfo, Source, decoded
from keras_deeplab.files import digest, write_png

CLASSES = ("background", "disc", "ring", "square", "triangle", "cross")
COLORS = ((0, 0, 0), (220, 60, 60), (240, 170, 40), (70, 170, 80), (60, 110, 220), (170, 80, 200))
SIDES = (64, 112)
RADII = (11, 25)
OBJECTS = (3, 6)
# Of images of one shape; radii of the shorter side.
SINGLE_SIDES = (56, 112)
SINGLE_RADII = (0.25, 0.45)
KEPT = 1024  # drawn images kept in memory, about 30 kB each
ATTEMPTS = 30
TURN = 0.4


class Shapes(Source):
    """Generated images of textured shapes: a data set without a download.

    Six classes: background, disc, ring, square, triangle and cross, 22 to 50 pixels large, slightly
    rotated, on images of 64 to 112 pixels a side. Objects are vivid and backgrounds dull, but
    colours, textures and lighting do not depend on the shape, so that only the outline identifies
    the class. A border of two pixels around each object is ignored (255). Images are generated when
    they are read, each from its own seed; training and validation images have different seeds.

    Args:
        train: Number of training images.
        val: Number of validation images.
        seed: The same seed gives the same images.

    Example:

    >>> source = data.Shapes(train=200, val=20)
    >>> image, label = next(source.dataset("train").as_numpy_iterator())
    """

    def __init__(self, train: int = 640, val: int = 48, seed: int = 0) -> None:
        validation.integer("train", train)
        validation.integer("val", val, minimum=0)
        validation.integer("seed", seed, minimum=0)
        self.seed = seed
        self._counts = {"train": train, "val": val} if val else {"train": train}

    info = DatasetInfo(CLASSES, COLORS)

    @property
    def splits(self) -> tuple[str, ...]:
        """`("train", "val")`, or `("train",)` if `val` is 0."""
        return tuple(self._counts)

    def names(self, split: str) -> list[str]:
        """Returns one name per image."""
        self.check_split(split)
        return [f"{split}_{index:05d}" for index in range(self._counts[split])]

    def fingerprint(self) -> str:
        """Identifies also the seed."""
        return digest([super().fingerprint(), self.seed])

    def dataset(self, split: str, numbers: tf.data.Dataset | None = None) -> tf.data.Dataset:
        """Returns the pairs of a split (see `data.Source.dataset`)."""
        self.check_split(split)
        draw = partial(_drawn, self.seed, self.splits.index(split))
        return decoded(draw, self._counts[split], numbers)


@lru_cache(KEPT)
def _drawn(seed: int, part: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    pair = draw_image(np.random.default_rng([seed, part, index]))
    for pixels in pair:
        pixels.setflags(write=False)  # as the cache returns them several times
    return pair


def draw_image(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws one image uint8 `(height, width, 3)` and its label uint8 `(height, width)`."""
    size, grid, image = _background(rng, SIDES)
    label = np.zeros(size, np.uint8)
    for centre, radius in _places(rng, size):
        kind = int(rng.integers(1, len(CLASSES)))
        mask = _draw(rng, image, grid, kind, centre, radius)
        label[mask] = kind
        inside = Image.fromarray(mask.astype(np.uint8))
        near, far = inside.filter(ImageFilter.MaxFilter(3)), inside.filter(ImageFilter.MinFilter(3))
        label[np.asarray(near) != np.asarray(far)] = IGNORE_LABEL
    return photographed(rng, image, grid / size.max()), label


def draw_shape(rng: np.random.Generator, kind: int) -> np.ndarray:
    """Draws one image uint8 `(height, width, 3)` of a shape of `CLASSES`."""
    size, grid, image = _background(rng, SINGLE_SIDES)
    radius = rng.uniform(*SINGLE_RADII) * size.min()
    _draw(rng, image, grid, kind, rng.uniform(radius, size - radius), radius)
    return photographed(rng, image, grid / size.max())


def _background(
    rng: np.random.Generator, sides: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the size, the places of the pixels and the surface of an empty image."""
    size = rng.integers(sides[0], sides[1] + 1, 2)
    grid = np.mgrid[: size[0], : size[1]].astype(np.float32)
    return size, grid, paint(rng, grid, dull(rng))


def _places(rng: np.random.Generator, size: np.ndarray) -> list[tuple[np.ndarray, float]]:
    """Centres and radii of objects that do not touch."""
    wanted = rng.integers(OBJECTS[0], OBJECTS[1] + 1)
    places: list[tuple[np.ndarray, float]] = []
    for _ in range(ATTEMPTS):
        radius = rng.uniform(*RADII)
        # An object may be cut by the edge a little, but must remain recognisable.
        centre = rng.uniform(0.8 * radius, size - 0.8 * radius)
        if all(np.hypot(*(centre - c)) > 1.1 * (radius + r) + 2 for c, r in places):
            places.append((centre, radius))
        if len(places) == wanted:
            break
    return places


def _draw(
    rng: np.random.Generator,
    image: np.ndarray,
    grid: np.ndarray,
    kind: int,
    centre: np.ndarray,
    radius: float,
) -> np.ndarray:
    """Draws a shape, slightly rotated, and returns the pixels inside it."""
    down, right = grid - centre[:, None, None].astype(np.float32)
    angle = rng.uniform(-TURN, TURN)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    down, right = (cos * down - sin * right) / radius, (sin * down + cos * right) / radius
    distance = np.hypot(down, right)
    near, far = np.minimum(abs(down), abs(right)), np.maximum(abs(down), abs(right))
    mask = {
        "disc": distance < 1,
        "ring": (distance < 1) & (distance > 0.55),
        "square": far < 0.8,
        "triangle": (down < 0.55) & (3**0.5 * abs(right) - down < 1.1),
        "cross": (near < 0.3) & (far < 1),
    }[CLASSES[kind]]
    image[mask] = paint(rng, grid, vivid(rng))[mask]
    return mask


def paint(rng: np.random.Generator, grid: np.ndarray, color: np.ndarray) -> np.ndarray:
    """A surface of a colour with a gradient and stripes, float32 `(height, width, 3)`."""
    gradient = rng.normal(0, 0.25, (2, 3))
    waves = rng.uniform(0.2, 1.2) * _direction(rng)
    stripes = rng.uniform(0, 12) * np.sin(np.tensordot(waves, grid, 1) + rng.uniform(0, 6.3))
    offset = np.tensordot(grid, gradient.astype(np.float32), (0, 0))
    offset -= offset.mean(axis=(0, 1))
    return (color + offset + stripes[..., None]).astype(np.float32)


def _direction(rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    return np.array([np.cos(angle), np.sin(angle)], np.float32)


def dull(rng: np.random.Generator) -> np.ndarray:
    """A colour whose channels hardly differ."""
    return rng.uniform(50, 200) + rng.uniform(-15, 15, 3)


def vivid(rng: np.random.Generator) -> np.ndarray:
    """A colour whose channels differ clearly, of any hue."""
    return rng.permutation([rng.uniform(0, 60), rng.uniform(0, 255), rng.uniform(150, 255)])


def photographed(rng: np.random.Generator, image: np.ndarray, place: np.ndarray) -> np.ndarray:
    """The picture under light from one side, with the noise of a camera, as uint8."""
    light = 1 + 0.35 * (np.tensordot(_direction(rng), place, 1) + rng.uniform(-0.7, 0.3))
    noise = rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(2, 10))
    return np.clip(image * light[..., None] + noise, 0, 255).astype(np.uint8)


def write_shape_images(
    root: str | os.PathLike, train: int = 1500, val: int = 250, seed: int = 0
) -> None:
    """Writes generated images of one shape each: classification data without a download.

    The files are `root/{train,val}/CLASS/NUMBER.png` of five classes: disc, ring, square, triangle
    and cross, drawn as in `data.Shapes`, each on an image of 56 to 112 pixels a side. The shape is
    0.5 to 0.9 of the shorter side large, turned a little, anywhere on the image. Colours, textures
    and lighting have the same distribution in all classes, so only the outline shows the class.

    Args:
        root: The folder.
        train: Number of training images.
        val: Number of validation images.
        seed: The same seed gives the same images.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    >>> data.write_shape_images("shapes", train=20, val=5)
    """
    counts = {"train": validation.integer("train", train), "val": validation.integer("val", val)}
    validation.integer("seed", seed, minimum=0)
    for part, (split, count) in enumerate(counts.items()):
        for index in range(count):
            kind = 1 + index % (len(CLASSES) - 1)
            path = Path(root) / split / CLASSES[kind] / f"{index:05d}.png"
            write_png(path, draw_shape(np.random.default_rng([seed, part, index]), kind))
