"""A part of the training images as a validation split, so that `val` stays for the final score."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from keras_deeplab.data.source import DatasetInfo, Source
from keras_deeplab.files import digest
from keras_deeplab.validation import error, integer

BLOCKS = 5  # per fold


class HeldOut(Source):
    """The `train` split of a source, divided into `train` and `val`.

    Neighbouring frames of a video look alike. So the images held out are not drawn one by one: the
    names are cut in order into `5 * folds` blocks, of which every `folds`-th one is held out.

    Args:
        source: A source with a split `train`.
        fold: Which part is held out, in `0..folds-1`.
        folds: Number of parts, at least 2.
        prefix: Prefix of the names that are held out, such as that of a recording, in place of a
            fold.

    Raises:
        ValueError: If an argument is out of its range, there are fewer images than folds, or all
            or none are held out.

    Example:

    >>> source = keras_deeplab.data.HeldOut(keras_deeplab.data.Shapes(train=200, val=3), folds=2)
    >>> len(source.names("train")) == len(source.names("val"))
    True
    """

    def __init__(
        self, source: Source, fold: int = 0, folds: int = 5, prefix: str | None = None
    ) -> None:
        source.check_split("train")
        folds = integer("folds", folds, minimum=2)
        if integer("fold", fold, minimum=0) >= folds:
            raise error("fold", f"below the number of folds, {folds}", fold)
        names = source.names("train")
        self.source = source
        if prefix is None:
            if len(names) < folds:
                raise error("folds", f"at most the number of training images, {len(names)}", folds)
            blocks = min(BLOCKS * folds, len(names) // folds * folds)
            held = np.empty(len(names), bool)
            numbered = [re.sub(r"\d+", lambda digits: digits[0].zfill(20), name) for name in names]
            order = np.argsort(np.array(numbered), kind="stable")  # frame_2 before frame_10
            held[order] = np.arange(len(names)) * blocks // len(names) % folds == fold
        else:
            held = np.array([name.startswith(prefix) for name in names])
        if held.all() or not held.any():
            raise error("prefix", "that of some of the training images, not of all", prefix)
        self._positions = {"train": np.flatnonzero(~held), "val": np.flatnonzero(held)}
        self._names = {
            split: [names[position] for position in positions]
            for split, positions in self._positions.items()
        }

    @property
    def splits(self) -> tuple[str, ...]:
        """`("train", "val")`."""
        return ("train", "val")

    @property
    def info(self) -> DatasetInfo:
        """The classes and their colours."""
        return self.source.info

    def names(self, split: str) -> list[str]:
        """Returns the names of a split's images, in the order of `dataset(split)`."""
        self.check_split(split)
        return self._names[split]

    def fingerprint(self) -> str:
        """Identifies also the source."""
        return digest([super().fingerprint(), self.source.fingerprint()])

    def label_sizes(self, split: str) -> list[tuple[int, int]] | None:
        """Returns the `(height, width)` of the label maps (see `Source.label_sizes`)."""
        self.check_split(split)
        sizes = self.source.label_sizes("train")
        return sizes and [sizes[position] for position in self._positions[split]]

    def dataset(self, split: str, numbers: tf.data.Dataset | None = None) -> tf.data.Dataset:
        """Returns a split's decoded pairs (see `Source.dataset`)."""
        self.check_split(split)
        positions = tf.constant(self._positions[split], tf.int64)
        if numbers is None:
            numbers = tf.data.Dataset.range(len(self._names[split]))
        return self.source.dataset("train", numbers.map(lambda number: positions[number]))

    def encoded_images(self, split: str) -> Callable[[int], bytes] | None:
        """Returns a function that reads the encoded image at a position; None without files."""
        self.check_split(split)
        read = self.source.encoded_images("train")
        return read and (lambda number: read(int(self._positions[split][number])))
