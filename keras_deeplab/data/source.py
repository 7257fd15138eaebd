"""The base class of data sources, and the classes of a data set."""

from __future__ import annotations

import abc
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import index
from typing import Any

import numpy as np
import tensorflow as tf

from keras_deeplab import validation
from keras_deeplab.files import digest

IGNORE_LABEL = 255
SAMPLED = 16  # images, to estimate the size of a split
MAX_CLASSES = 255  # labels are uint8 and 255 is the ignored one


def voc_colors(n: int) -> tuple[tuple[int, int, int], ...]:
    """Returns the first `n` colours of the PASCAL VOC colour map: `(red, green, blue)` in 0..255.

    Args:
        n: Number of colours, 0 to 65,536; those after the 256 of PASCAL VOC follow the same rule.

    Example:

    >>> voc_colors(3)
    ((0, 0, 0), (128, 0, 0), (0, 128, 0))
    """
    if not 0 <= n <= 65_536:
        raise validation.error("n", "in 0..65,536", n)
    # Each channel collects every third bit of the index, the lowest bit first into the highest.
    return tuple(
        tuple(
            sum((index >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(6))
            for channel in range(3)
        )
        for index in range(n)
    )


@dataclass(frozen=True)
class DatasetInfo:
    """The names and colours of a data set's classes, and what its images are.

    Args:
        classes: Class names; the position is the label.
        colors: One `(red, green, blue)` in 0..255 per class, for visualisation only. By default
            the PASCAL VOC colour map.
        channels: Channels of the images, as a source gives them.
        value_range: Sample values `(low, high)` of image files that become 0 and 255; None for
            those of 8 or 16 bits.

    Example:

    >>> info = DatasetInfo(("background", "cat"))
    >>> info.num_classes, info.colors
    (2, ((0, 0, 0), (128, 0, 0)))
    >>> DatasetInfo.from_dict(info.to_dict()) == info
    True
    """

    classes: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...] = ()
    channels: int = 3
    value_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        classes = tuple(self.classes) if isinstance(self.classes, list | tuple) else ()
        if not 1 <= len(classes) <= MAX_CLASSES or not all(isinstance(n, str) for n in classes):
            raise validation.error("classes", f"a list of 1 to {MAX_CLASSES} names", self.classes)
        try:
            colors = tuple(tuple(map(index, color)) for color in self.colors)
        except TypeError:
            colors = ((),)
        colors = colors or voc_colors(len(classes))
        valid = all(len(color) == 3 and 0 <= min(color) <= max(color) <= 255 for color in colors)
        if not valid or len(colors) != len(classes):
            rule = f"one (red, green, blue) in 0..255 for each of {len(classes)} classes"
            raise validation.error("colors", rule, self.colors)
        object.__setattr__(self, "classes", classes)
        object.__setattr__(self, "colors", colors)
        validation.integer("channels", self.channels)
        if self.value_range is not None:
            limits = validation.value_range("value_range", self.value_range)
            object.__setattr__(self, "value_range", limits)

    @property
    def num_classes(self) -> int:
        """The number of classes, without the ignored label."""
        return len(self.classes)

    def to_dict(self) -> dict[str, Any]:
        """Returns a plain dict, ready for `json.dump`, in which 8-bit RGB is left out."""
        colors = [list(color) for color in self.colors]
        channels = {} if self.channels == 3 else {"channels": self.channels}
        limits = {} if self.value_range is None else {"range": list(self.value_range)}
        return {"classes": list(self.classes), "colors": colors, **channels, **limits}

    @classmethod
    def from_dict(cls, config: dict) -> DatasetInfo:
        """Returns the `DatasetInfo` that `to_dict` wrote, or raises a ValueError."""
        if not isinstance(config, dict) or "classes" not in config:
            rule = 'a dict with the keys "classes", a list of names, and optionally "colors"'
            raise validation.error("config", rule, config)
        channels, limits = config.get("channels", 3), config.get("range")
        return cls(config["classes"], config.get("colors", ()), channels, limits)


class Source(abc.ABC):
    """Images with label maps in splits, decoded: the input of the pipelines and `data.audit`."""

    @property
    @abc.abstractmethod
    def splits(self) -> tuple[str, ...]:
        """The existing splits, such as `("train", "val")`."""

    @abc.abstractmethod
    def names(self, split: str) -> list[str]:
        """Returns the names of a split's images, in the order of `dataset(split)`."""

    @property
    @abc.abstractmethod
    def info(self) -> DatasetInfo:
        """The classes and their colours."""

    @abc.abstractmethod
    def dataset(self, split: str, numbers: tf.data.Dataset | None = None) -> tf.data.Dataset:
        """Returns a split's decoded pairs.

        Args:
            split: One of `splits`.
            numbers: A dataset of int64 positions in `names(split)`: the images to decode, in this
                order. By default every image once.

        Returns:
            A dataset as long as `numbers` with pairs `(image, label)`: RGB uint8
            `(height, width, 3)` and uint8 `(height, width)` in 0..num_classes-1 or 255 (ignored).
            Images have `info.channels` channels in place of 3.
        """

    def encoded_images(self, split: str) -> Callable[[int], bytes] | None:
        """Returns a function that reads the encoded image at a position; None without files."""
        self.check_split(split)

    def fingerprint(self) -> str:
        """Identifies the classes, the names and what label maps mean; not the files' contents."""
        names = {split: list(self.names(split)) for split in self.splits}
        return digest([self.info.to_dict(), names])

    def check_split(self, split: str) -> None:
        """Raises a ValueError if `split` is not one of `splits`."""
        if split not in self.splits:
            raise ValueError(f"`split` must be one of {self.splits}. Received: split={split!r}")

    def checked_dataset(
        self, split: str, numbers: tf.data.Dataset | None = None
    ) -> tf.data.Dataset:
        """Returns `dataset`, or raises a ValueError if its label maps are not uint8."""
        dataset = self.dataset(split, numbers)
        dtype = dataset.element_spec[1].dtype
        if dtype != tf.uint8:  # a cast would turn a mask divided by 255 into class 0
            name = f"{type(self).__name__}.dataset"
            raise ValueError(f"`{name}` must give label maps of uint8. Received: {dtype.name}")
        return dataset

    def label_sizes(self, split: str) -> list[tuple[int, int]] | None:
        """Returns the `(height, width)` of the label maps; None if it takes decoding the pairs."""
        self.check_split(split)

    def decoded_bytes(self, split: str) -> int:
        """Estimates the bytes of the decoded split from some of its pairs, evenly spaced."""
        count = len(self.names(split))
        numbers = tf.data.Dataset.from_tensor_slices(evenly_spaced(count, SAMPLED))
        pairs = self.dataset(split, numbers)
        taken = [image.size + label.size for image, label in pairs.as_numpy_iterator()]
        return int(np.mean(taken) * count) if taken else 0


def evenly_spaced(count: int, most: int) -> np.ndarray:
    """Returns at most `most` of the positions 0..count-1, at equal distances, int64."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def pairs_or_reasons(dataset: tf.data.Dataset) -> Iterator[tuple[np.ndarray, np.ndarray] | str]:
    """Yields the pairs of a dataset, and in the place of one that cannot be read why not."""
    pairs = dataset.as_numpy_iterator()
    while True:
        try:
            yield next(pairs)
        except StopIteration:
            return
        except tf.errors.InvalidArgumentError as error:
            yield reason(error)


def reason(error: tf.errors.InvalidArgumentError) -> str:
    """Returns why a pair cannot be read, without the traceback inside TensorFlow's message."""
    text = re.split(r"\nTraceback|\s*\[\[\{\{node", error.message)[0].strip()
    return text.partition("ValueError: ")[2] or text


def decoded(
    read: Callable[[int], tuple[np.ndarray, np.ndarray]],
    count: int,
    numbers: tf.data.Dataset | None,
    channels: int = 3,
) -> tf.data.Dataset:
    """Returns the pairs that `read` gives for `numbers`, by default for 0..count-1."""

    def decode(number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image, label = tf.numpy_function(read, [number], [tf.uint8] * 2, stateful=False)
        return tf.ensure_shape(image, (None, None, channels)), tf.ensure_shape(label, (None, None))

    numbers = tf.data.Dataset.range(count) if numbers is None else numbers
    return numbers.map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
