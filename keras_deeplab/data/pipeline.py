from __future__ import annotations

import os
from collections.abc import Sequence

import tensorflow as tf

from keras_deeplab.data.augment import MEAN_COLOR, augment
from keras_deeplab.data.source import IGNORE_LABEL, Source

CACHE_LIMIT = 2 * 1024**3


def training_dataset(
    source: Source,
    split: str = "train",
    *,
    crop_size: tuple[int, int],
    batch_size: int = 8,
    scales: tuple[float, float] = (0.5, 2.0),
    flip: bool = True,
    color_jitter: float | Sequence[float] | None = 0.2,
    shuffle: bool = True,
    seed: int = 0,
    cache: bool | str = "auto",
    repeat: bool = False,
) -> tf.data.Dataset:
    """Returns shuffled, augmented batches of one size for `model.fit`.

    Every image comes once in an epoch; the last batch is filled up with images of the next round,
    so that all batches are full (batch normalisation never sees a batch of one) and nothing is
    dropped. The same seed gives the same batches; every epoch differs from the one before.

    Args:
        source: A `data.Source`.
        split: One of `source.splits`.
        crop_size: `(height, width)` of all images; smaller ones are padded (see `data.augment`).
        batch_size: Images a batch.
        scales: Smallest and largest random scale.
        flip: Whether to mirror left to right at random.
        color_jitter: Largest change of brightness, contrast and saturation: one number in 0..1,
            three numbers, or None.
        shuffle: Whether to shuffle the whole split in every epoch.
        seed: Seed of order and augmentation.
        cache: Whether to keep the decoded images in memory. `"auto"` does where they take less
            than 2 GiB and a quarter of the memory.
        repeat: Whether to go on without end, for `steps_per_epoch`.

    Returns:
        A dataset of known cardinality with batches `(image, label)`: float32
        `(batch, height, width, 3)` in 0..255 and int32 `(batch, height, width)` with 255 ignored.

    Raises:
        ValueError: An argument is out of range, or the split is empty.

    Example:

    >>> train = data.training_dataset(data.Shapes(), crop_size=(128, 128), batch_size=8)
    >>> model.fit(train, epochs=20)
    """
    crop_size = _checked_size(crop_size)
    count = _checked_count(source, split, batch_size)
    strengths = _checked_jitter(color_jitter)
    if len(scales) != 2 or not 0 < scales[0] <= scales[1]:
        raise ValueError(f"`scales` must be (low, high), 0 < low <= high. Received: {scales}")

    def augmented(pair: tuple[tf.Tensor, tf.Tensor], number: tf.Tensor):
        image, label = augment(
            *pair,
            tf.bitcast(number, tf.int32),
            crop_size=crop_size,
            scales=tuple(map(float, scales)),
            flip=flip,
            color_jitter=strengths,
        )
        return image, tf.cast(label, tf.int32)

    pairs = _ordered(source, split, count, seed if shuffle else None, cache).repeat()
    if not repeat:
        pairs = pairs.take(-(-count // batch_size) * batch_size)
    # One number per image, drawn in order, keeps parallel augmentation reproducible.
    numbers = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)
    dataset = tf.data.Dataset.zip((pairs, numbers))
    dataset = dataset.map(augmented, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return dataset.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def evaluation_dataset(
    source: Source,
    split: str = "val",
    batch_size: int = 1,
    *,
    cache: bool | str = "auto",
) -> tf.data.Dataset:
    """Returns whole images at their own size, in the order of `source.names(split)`.

    Args:
        source: A `data.Source`.
        split: One of `source.splits`.
        batch_size: Images a batch. Where the sizes in a batch differ, the smaller images are padded
            at the right and the bottom with grey 127.5, their labels with 255; the last batch may
            be smaller.
        cache: As in `data.training_dataset`.

    Returns:
        A dataset of known cardinality with batches `(image, label)`: float32
        `(batch, height, width, 3)` in 0..255 and int32 `(batch, height, width)` with 255 ignored.

    Raises:
        ValueError: An argument is out of range, or the split is empty.

    Example:

    >>> model.evaluate(data.evaluation_dataset(data.Shapes()))
    """
    count = _checked_count(source, split, batch_size)
    dataset = _ordered(source, split, count, None, cache).map(
        lambda image, label: (tf.cast(image, tf.float32), tf.cast(label, tf.int32)),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    dataset = dataset.padded_batch(
        batch_size, ((None, None, 3), (None, None)), (MEAN_COLOR, IGNORE_LABEL)
    )
    return dataset.prefetch(tf.data.AUTOTUNE)


def _ordered(
    source: Source, split: str, count: int, shuffle_seed: int | None, cache: bool | str
) -> tf.data.Dataset:
    """The decoded pairs of a split, cached where it fits, shuffled where a seed is given."""
    if cache not in (True, False, "auto"):
        raise ValueError(f'`cache` must be True, False or "auto". Received: cache={cache!r}')
    if cache == "auto":
        cache = source.decoded_bytes(split) <= _cache_limit()
    if not cache:
        return source.dataset(split, shuffle_seed)
    pairs = source.dataset(split).cache()
    # The buffer holds references to what the cache holds anyway.
    return pairs if shuffle_seed is None else pairs.shuffle(count, seed=shuffle_seed)


def _cache_limit() -> int:
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return CACHE_LIMIT
    return min(CACHE_LIMIT, memory // 4)


def _checked_count(source: Source, split: str, batch_size: int) -> int:
    source.check_split(split)
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1. Received: batch_size={batch_size}")
    count = len(source.names(split))
    if not count:
        raise ValueError(f"`split` must hold images. Received: split={split!r}, which is empty")
    return count


def _checked_size(crop_size: tuple[int, int]) -> tuple[int, int]:
    size = tuple(crop_size)
    if len(size) != 2 or any(side != int(side) or side < 1 for side in size):
        raise ValueError(f"`crop_size` must be (height, width) from 1 on. Received: {crop_size}")
    return int(size[0]), int(size[1])


def _checked_jitter(color_jitter: float | Sequence[float] | None) -> tuple[float, ...] | None:
    if color_jitter is None:
        return None
    single = isinstance(color_jitter, int | float)
    strengths = (color_jitter,) * 3 if single else tuple(color_jitter)
    allowed = len(strengths) == 3 and all(0 <= strength <= 1 for strength in strengths)
    # True would pass for the number 1, which is the most that can be asked for.
    if isinstance(color_jitter, bool) or not allowed:
        raise ValueError(
            "`color_jitter` must be a number in 0..1, three of them (brightness, contrast, "
            f"saturation), or None. Received: color_jitter={color_jitter!r}"
        )
    return tuple(map(float, strengths))
