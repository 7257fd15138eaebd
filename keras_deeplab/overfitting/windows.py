"""The images to fit: one window of each."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from keras_deeplab.data import IGNORE_LABEL, Source
from keras_deeplab.data.augment import MEAN_COLOR

LARGEST_SIDE = 160
PLACES = 7  # along each side

Pair = tuple[np.ndarray, np.ndarray]


def read_windows(source: Source, split: str, count: int, crop_size: tuple[int, int] | None) -> Pair:
    """Reads images from all over a split, the same ones each time, and takes a window of each.

    Args:
        source: A `data.Source`.
        split: One of its splits.
        count: Number of images; fewer where the split has fewer.
        crop_size: `(height, width)`; None for the largest of the images' sides, at most 160.

    Returns:
        `(images, labels)`: float32 `(batch, height, width, 3)` in 0..255 and int32
        `(batch, height, width)` with 255 ignored. An image smaller than the window is extended
        with grey that does not count.
    """
    images = len(source.names(split))
    spread = np.unique(np.linspace(0, images - 1, min(count, images)).astype(np.int64))
    numbers = tf.data.Dataset.from_tensor_slices(spread)
    pairs = list(source.checked_dataset(split, numbers).as_numpy_iterator())
    if crop_size is None:
        sides = np.max([label.shape for _, label in pairs], axis=0)
        crop_size = tuple(int(min(side, LARGEST_SIDE)) for side in sides)
    windows = [richest_window(image, label, crop_size) for image, label in pairs]
    images, labels = zip(*windows, strict=True)
    return np.stack(images), np.stack(labels)


def richest_window(image: np.ndarray, label: np.ndarray, size: tuple[int, int]) -> Pair:
    """The window whose pixels are spread over the most classes: the largest entropy of labels.

    A count of classes would prefer windows with slivers of many, of which a few wrong pixels decide
    the mean IoU.
    """
    after = [(0, max(0, want - have)) for want, have in zip(size, label.shape, strict=True)]
    image = np.pad(image.astype(np.float32), [*after, (0, 0)], constant_values=MEAN_COLOR)
    label = np.pad(label.astype(np.int32), after, constant_values=IGNORE_LABEL)
    rows, columns = (
        np.unique(np.linspace(0, have - want, PLACES).astype(int))
        for want, have in zip(size, label.shape, strict=True)
    )
    cuts = [np.s_[row : row + size[0], left : left + size[1]] for row in rows for left in columns]
    best = max(cuts, key=lambda cut: entropy(label[cut]))
    return image[best], label[best]


def entropy(label: np.ndarray) -> float:
    """Of the classes of the pixels that count, in nats; -1 where none does."""
    counts = np.unique(label[label != IGNORE_LABEL], return_counts=True)[1]
    if not counts.size:
        return -1.0
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())
