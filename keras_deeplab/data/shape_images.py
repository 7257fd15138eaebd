"""Generated images of one shape each, in a folder for each class."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from keras_deeplab.data import shapes
from keras_deeplab.files import write_png
from keras_deeplab.validation import integer

CLASSES = shapes.CLASSES[1:]
SIDES = (56, 112)
RADII = (0.25, 0.45)  # of the image's shorter side


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
    counts = {"train": integer("train", train), "val": integer("val", val)}
    integer("seed", seed, minimum=0)
    for part, (split, count) in enumerate(counts.items()):
        for index in range(count):
            label = index % len(CLASSES)
            path = Path(root) / split / CLASSES[label] / f"{index:05d}.png"
            write_png(path, draw_shape(np.random.default_rng([seed, part, index]), label))


def draw_shape(rng: np.random.Generator, label: int) -> np.ndarray:
    """Draws one image uint8 `(height, width, 3)` of a shape of `CLASSES`."""
    size = rng.integers(SIDES[0], SIDES[1] + 1, 2)
    grid = np.mgrid[: size[0], : size[1]].astype(np.float32)
    image = shapes.paint(rng, grid, shapes.grey(rng))
    radius = rng.uniform(*RADII) * size.min()
    centre = rng.uniform(radius, size - radius)
    place = shapes.turned(grid, centre, rng.uniform(-shapes.TURN, shapes.TURN)) / radius
    mask = shapes.inside(label + 1, place)
    image[mask] = shapes.paint(rng, grid, shapes.vivid(rng))[mask]
    return shapes.photographed(rng, image, grid / size.max())
