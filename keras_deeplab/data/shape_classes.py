"""Generated pictures of one shape each."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import tensorflow as tf

from keras_deeplab.data import shapes
from keras_deeplab.data.class_folders import ClassSource

CLASSES = shapes.CLASSES[1:]
SIDES = (56, 112)
RADII = (0.25, 0.45)  # of the image's shorter side
KEPT = 4096  # drawn images kept in memory, about 20 kB each


class ShapeClasses(ClassSource):
    """Generated pictures of one shape each: a data set of classes that needs no download.

    Five classes: disc, ring, square, triangle and cross, drawn as in `data.Shapes`, each on an
    image of its own of 56 to 112 pixels a side. The shape is 0.5 to 0.9 of the shorter side large,
    turned a little, anywhere on the image. Colours, textures and lighting are drawn alike for all
    classes, so only the outline tells the class. Every class has the same number of images, give
    or take one. Images are drawn when they are read, each from its own seed; validation images come
    from another one than training images.

    Args:
        train: Number of training images.
        val: Number of validation images.
        seed: The same seed gives the same images.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    >>> source = data.ShapeClasses(train=200, val=20)
    >>> source.classes
    ('disc', 'ring', 'square', 'triangle', 'cross')
    >>> image, label = next(source.dataset("train").as_numpy_iterator())
    """

    def __init__(self, train: int = 1500, val: int = 250, seed: int = 0) -> None:
        if train < 1 or val < 1 or seed < 0:
            raise ValueError(
                "`train` and `val` must be at least 1, `seed` at least 0. "
                f"Received: train={train}, val={val}, seed={seed}"
            )
        self.seed = seed
        self._counts = {"train": train, "val": val}

    @property
    def classes(self) -> tuple[str, ...]:
        """The five shapes."""
        return CLASSES

    def names(self, split: str) -> list[str]:
        """Returns one name per image."""
        self.check_split(split)
        return [
            f"{CLASSES[index % len(CLASSES)]}_{index:05d}" for index in range(self._counts[split])
        ]

    def dataset(self, split: str, numbers: tf.data.Dataset | None = None) -> tf.data.Dataset:
        """Returns the images and labels of a split (see `data.ClassSource.dataset`)."""
        self.check_split(split)
        part = self.splits.index(split)
        if numbers is None:
            numbers = tf.data.Dataset.range(self._counts[split])

        def draw(index: np.int64) -> np.ndarray:
            return _drawn(self.seed, part, int(index))

        def read(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            image = tf.numpy_function(draw, [index], tf.uint8, stateful=False)
            label = tf.cast(index % len(CLASSES), tf.int32)
            return tf.ensure_shape(image, (None, None, 3)), label

        return numbers.map(read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


@lru_cache(KEPT)
def _drawn(seed: int, part: int, index: int) -> np.ndarray:
    """An image of a split, read-only: every epoch asks for the same."""
    image = draw_shape(np.random.default_rng([seed, part, index]), index % len(CLASSES))
    image.setflags(write=False)
    return image


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
