"""Random mixtures of images: copy-paste, mosaic, and rectangles cut out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from keras_deeplab.data.augmentation.crops import MEAN_COLOR, Pair, random_below
from keras_deeplab.data.source import IGNORE_LABEL

ASPECT = 2.0  # the longest rectangle of cutout is twice as long as wide


def mosaic(
    tile: Callable[[int, tf.Tensor], Pair], seed: tf.Tensor, crop_size: tuple[int, int]
) -> Pair:
    """Puts four images around a random point in the middle half of the crop.

    `tile(number, size)` returns image 0 to 3 with its label in a size.
    """
    seeds = tf.random.split(seed)
    # Of at least one pixel each side of the point.
    top, left = (
        side // 4 + random_below(side // 2, axis) if side > 3 else 1
        for side, axis in zip(crop_size, tf.unstack(seeds), strict=True)
    )
    bottom, right = crop_size[0] - top, crop_size[1] - left
    tiles = [
        tile(number, tf.stack(size))
        for number, size in enumerate(((top, left), (top, right), (bottom, left), (bottom, right)))
    ]
    return tuple(
        tf.concat([tf.concat(parts[:2], axis=1), tf.concat(parts[2:], axis=1)], axis=0)
        for parts in zip(*tiles, strict=True)
    )


def keep_classes(label: tf.Tensor, classes: Sequence[int]) -> tf.Tensor:
    """The label map with 255 in place of all other classes."""
    table = np.full(IGNORE_LABEL + 1, IGNORE_LABEL, np.uint8)
    table[list(classes)] = classes
    return tf.gather(table, tf.cast(label, tf.int32))


def paste(image: tf.Tensor, label: tf.Tensor, other: Pair, classes: Sequence[int]) -> Pair:
    """Puts the pixels of some classes of another image over an image."""
    pasted = keep_classes(other[1], classes)
    is_pasted = pasted != IGNORE_LABEL
    return tf.where(is_pasted[..., None], other[0], image), tf.where(is_pasted, pasted, label)


def random_cutout(image: tf.Tensor, label: tf.Tensor, seed: tf.Tensor, largest: float) -> Pair:
    """Cuts out a rectangle of a random share of the image up to `largest`, anywhere inside.

    The image becomes grey 127.5 and the label 255, as where an image is padded.
    """
    seeds = tf.random.split(seed, 4)
    size = tf.cast(tf.shape(label), tf.float32)
    area = tf.random.stateless_uniform((), seeds[0], 0.0, largest) * tf.reduce_prod(size)
    aspect = ASPECT ** tf.random.stateless_uniform((), seeds[1], -1.0, 1.0)
    sides = tf.sqrt(area * tf.stack([aspect, 1.0 / aspect]))
    sides = tf.minimum(tf.cast(tf.round(sides), tf.int32), tf.shape(label))
    rows, columns = (
        _between(tf.shape(label)[axis], sides[axis], seeds[2 + axis]) for axis in range(2)
    )
    cut = rows[:, None] & columns
    label = tf.where(cut, tf.cast(IGNORE_LABEL, label.dtype), label)
    return tf.where(cut[..., None], MEAN_COLOR, image), label


def _between(count: tf.Tensor, length: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Which of `count` places are in an interval of a length at a random place."""
    place = tf.range(count) - random_below(count - length + 1, seed)
    return (place >= 0) & (place < length)
