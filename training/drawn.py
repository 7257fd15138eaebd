"""Data sets of generated images."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial

import numpy as np
import tensorflow as tf

from keras_deeplab import data
from keras_deeplab.data.source import decoded


class Drawn(data.Source):
    """Pairs that `draw` generates when they are read; a subclass has `info`.

    Args:
        train, val: Number of images.
    """

    splits = ("train", "val")

    def __init__(self, train: int, val: int) -> None:
        self.counts = {"train": train, "val": val}

    @abstractmethod
    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draws an image uint8 `(height, width, 3)` and its label."""

    def names(self, split: str) -> list[str]:
        """Returns one name per image."""
        return [f"{split}_{index:05d}" for index in range(self.counts[split])]

    def dataset(self, split: str, numbers: tf.data.Dataset | None = None) -> tf.data.Dataset:
        """Returns the pairs of a split (see `data.Source.dataset`)."""
        read = partial(self._read, self.splits.index(split))
        return decoded(read, self.counts[split], numbers)

    def _read(self, part: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.draw(np.random.default_rng([part, index]))
