from __future__ import annotations

import abc
from collections.abc import Iterable
from dataclasses import dataclass
from operator import index
from reprlib import repr as shortened

import numpy as np
import tensorflow as tf

IGNORE_LABEL = 255
MAX_CLASSES = 255  # labels are uint8 and 255 is the ignored one


def voc_colors(n: int) -> tuple[tuple[int, int, int], ...]:
    """Returns the first `n` colours of the PASCAL VOC colour map.

    Args:
        n: Number of colours, 0 to 65,536; more than the 256 of PASCAL VOC go on in the same way.

    Returns:
        `n` tuples `(red, green, blue)` in 0..255; the first is black.

    Example:

    >>> voc_colors(3)
    ((0, 0, 0), (128, 0, 0), (0, 128, 0))
    """
    if not 0 <= n <= 65_536:
        raise ValueError(f"`n` must be in 0..65,536. Received: n={n}")
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
    """The names and colours of a data set's classes, in the order of their labels.

    Args:
        classes: Class names; the position is the label.
        colors: One `(red, green, blue)` in 0..255 per class, used for pictures only. By default
            the PASCAL VOC colour map.

    Example:

    >>> info = DatasetInfo(("background", "cat"))
    >>> info.num_classes, info.colors
    (2, ((0, 0, 0), (128, 0, 0)))
    >>> DatasetInfo.from_dict(info.to_dict()) == info
    True
    """

    classes: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...] = ()

    def __post_init__(self) -> None:
        listed = isinstance(self.classes, Iterable) and not isinstance(self.classes, (str, dict))
        classes = tuple(self.classes) if listed else ()
        if not 1 <= len(classes) <= MAX_CLASSES or not all(isinstance(n, str) for n in classes):
            raise ValueError(
                f"`classes` must list 1 to {MAX_CLASSES} names. "
                f"Received: classes={shortened(self.classes)}"
            )
        try:
            colors = tuple(tuple(map(index, color)) for color in self.colors)
        except TypeError:
            colors = ((),)
        if any(len(color) != 3 or not all(0 <= part <= 255 for part in color) for color in colors):
            raise ValueError(
                "`colors` must list (red, green, blue) in 0..255. "
                f"Received: colors={shortened(self.colors)}"
            )
        colors = colors or voc_colors(len(classes))
        if len(colors) != len(classes):
            raise ValueError(
                "`colors` must hold one colour per class. "
                f"Received: {len(colors)} colours for {len(classes)} classes"
            )
        object.__setattr__(self, "classes", classes)
        object.__setattr__(self, "colors", colors)

    @property
    def num_classes(self) -> int:
        """The number of classes, without the ignored label."""
        return len(self.classes)

    def to_dict(self) -> dict[str, list]:
        """Returns a plain dict of lists, ready for `json.dump`."""
        return {"classes": list(self.classes), "colors": [list(color) for color in self.colors]}

    @classmethod
    def from_dict(cls, config: dict) -> DatasetInfo:
        """Returns the `DatasetInfo` that `to_dict` wrote.

        Raises:
            ValueError: `config` is no such dict.
        """
        if not isinstance(config, dict) or "classes" not in config:
            raise ValueError(
                '`config` must be a dict with the key "classes", a list of names, and optionally '
                f'"colors". Received: config={shortened(config)}'
            )
        return cls(config["classes"], config.get("colors", ()))


class Source(abc.ABC):
    """Photographs with label maps, in splits: what the pipelines and `data.audit` read.

    A source says what its classes are, which splits it has and which images are in a split, and
    gives them decoded. Everything else (scaling, cropping, batching, caching) is the pipeline's.
    """

    @property
    @abc.abstractmethod
    def splits(self) -> tuple[str, ...]:
        """The splits that are there, such as `("train", "val")`."""

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
            numbers: A dataset of int64 positions in `names(split)`: the images to give, in this
                order, however many there are. Others are not decoded. By default every image once.

        Returns:
            A dataset as long as `numbers` with pairs `(image, label)`: RGB uint8
            `(height, width, 3)` and uint8 `(height, width)` in 0..num_classes-1 or 255 (ignored).
        """

    def check_split(self, split: str) -> None:
        """Raises a ValueError that lists the splits where `split` is not one of them."""
        if split not in self.splits:
            raise ValueError(f"`split` must be one of {self.splits}. Received: split={split!r}")

    def checked_dataset(
        self, split: str, numbers: tf.data.Dataset | None = None
    ) -> tf.data.Dataset:
        """Returns `dataset`; raises a ValueError where its label maps are not uint8.

        A cast would make class 0 of all values of a mask divided by 255.
        """
        dataset = self.dataset(split, numbers)
        label = dataset.element_spec[1]
        if label.dtype != tf.uint8:
            raise ValueError(
                f"`{type(self).__name__}.dataset` must give label maps of dtype uint8. "
                f"Received: dtype={label.dtype.name}"
            )
        return dataset

    def decoded_bytes(self, split: str) -> int:
        """Returns about how many bytes the decoded split takes (judged by its first pairs)."""
        taken = [image.size + label.size for image, label in self._first(split, 8)]
        return int(np.mean(taken) * len(self.names(split))) if taken else 0

    def _first(self, split: str, count: int) -> Iterable[tuple[np.ndarray, np.ndarray]]:
        return self.dataset(split).take(count).as_numpy_iterator()
