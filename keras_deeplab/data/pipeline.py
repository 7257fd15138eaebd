from __future__ import annotations

import tensorflow as tf

from keras_deeplab.data.augment import MEAN_COLOR, augment, checked_focus
from keras_deeplab.data.color import ColorJitter, jitter_strengths
from keras_deeplab.data.memory import decoded_pairs
from keras_deeplab.data.order import (
    anew_each_time,
    checked_step,
    image_numbers,
    image_seeds,
    run_key,
)
from keras_deeplab.data.source import IGNORE_LABEL, Source


def training_dataset(
    source: Source,
    split: str = "train",
    *,
    crop_size: tuple[int, int],
    batch_size: int = 8,
    scales: tuple[float, float] = (0.5, 2.0),
    scale_step: float | None = None,
    flip: bool = True,
    color_jitter: ColorJitter = 0.2,
    class_focus: float = 0.0,
    shuffle: bool = True,
    seed: int = 0,
    cache: bool | str = "auto",
    repeat: bool = False,
    first_step: int = 0,
) -> tf.data.Dataset:
    """Returns shuffled, augmented batches of one size for `model.fit`.

    Every image comes once in an epoch; the last batch is filled up with images of the next round,
    so that all batches are full (batch normalisation never sees a batch of one) and nothing is
    dropped. The same seed gives the same batches; every epoch differs from the one before.

    With `repeat=True` the batches go on without end, each a function of the seed and its number
    alone: every iteration is the same, `first_step=k` enters it at batch `k` (`.skip(k)` to the
    last bit, without its work), and `data.batch_names` tells which images a batch holds. A run that
    was stopped after `k` steps so goes on with the batches it would have had. None of this holds
    without `repeat`, where what comes depends on how often the dataset was iterated before.

    Args:
        source: A `data.Source`.
        split: One of `source.splits`.
        crop_size: `(height, width)` of all images; smaller ones are padded (see `data.augment`).
        batch_size: Images a batch.
        scales: Smallest and largest random scale.
        scale_step: Distance of the scales that are drawn, such as DeepLabV3+'s 0.25, counted from
            the smallest; None for any scale between.
        flip: Whether to mirror left to right at random.
        color_jitter: Largest changes of colour and light, in 0..1: one number for brightness,
            contrast and saturation, three numbers for them, or a mapping such as
            `{"brightness": 0.3, "gamma": 0.5, "white_balance": 0.1}`, which may have
            `"contrast"` and `"saturation"` too; or None. White balance multiplies each channel by a
            factor of its own in 1 - strength .. 1 + strength, gamma is an exponent between
            1 / (1 + strength) and 1 + strength.
        class_focus: Share of the crops in 0..1 that lie around a random pixel of a class, drawn
            from those in the image's label map alike, so that rare and thin classes are seen more
            often; the others lie anywhere.
        shuffle: Whether to shuffle the whole split in every epoch.
        seed: Seed of order and augmentation: any integer.
        cache: Whether to keep the decoded images in memory. `"auto"` does where they take less
            than 2 GiB and a quarter of the memory.
        repeat: Whether to go on without end, for `steps_per_epoch`.
        first_step: The number of the batch to begin with, from 0; needs `repeat=True`.

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
    strengths = jitter_strengths(color_jitter)
    class_focus = checked_focus(class_focus)
    if len(scales) != 2 or not 0 < scales[0] <= scales[1]:
        raise ValueError(f"`scales` must be (low, high), 0 < low <= high. Received: {scales}")
    if scale_step is not None and not scale_step > 0:
        raise ValueError(f"`scale_step` must be above 0 or None. Received: scale_step={scale_step}")
    first = checked_step("first_step", first_step) * batch_size
    if first and not repeat:
        raise ValueError(
            "`first_step` must be 0 without repeat=True: what a finite dataset gives depends on "
            f"how often it was iterated. Received: first_step={first_step}, repeat={repeat}"
        )

    def numbers(key: tf.Tensor) -> tf.data.Dataset:
        return image_numbers(count, key, shuffle=shuffle, first=first)

    def seeds(key: tf.Tensor) -> tf.data.Dataset:
        return image_seeds(count, key, first=first)

    def augmented(pair: tuple[tf.Tensor, tf.Tensor], image_seed: tf.Tensor):
        image, label = augment(
            *pair,
            image_seed,
            crop_size=crop_size,
            scales=tuple(map(float, scales)),
            scale_step=scale_step,
            flip=flip,
            color_jitter=strengths,
            class_focus=class_focus,
        )
        return image, tf.cast(label, tf.int32)

    order_key, augment_key = run_key(seed, "order"), run_key(seed, "augmentation")
    streams = (
        (numbers(order_key), seeds(augment_key))
        if repeat
        else (anew_each_time(order_key, numbers), anew_each_time(augment_key, seeds))
    )
    pairs = decoded_pairs(source, split, count, cache, streams[0])
    dataset = tf.data.Dataset.zip((pairs, streams[1]))
    dataset = dataset.map(augmented, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    steps = tf.data.INFINITE_CARDINALITY if repeat else -(-count // batch_size)
    dataset = dataset.batch(batch_size, drop_remainder=True)
    if not repeat:
        dataset = dataset.take(steps)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(steps))
    return dataset.prefetch(tf.data.AUTOTUNE).with_options(_whole_batches())


def batch_names(
    source: Source,
    split: str = "train",
    *,
    step: int,
    batch_size: int = 8,
    shuffle: bool = True,
    seed: int = 0,
) -> list[str]:
    """Returns the names of the images in a batch of an endless `data.training_dataset`.

    For the finite form (`repeat=False`) there is no such list: what comes there depends on how
    often the dataset was iterated before.

    Args:
        source: A `data.Source`.
        split: One of `source.splits`.
        step: The number of the batch, from 0, counted from the beginning of the run.
        batch_size: As given to `data.training_dataset`, like the next two.
        shuffle: Whether the split is shuffled.
        seed: Seed of the order.

    Returns:
        `batch_size` of the names in `source.names(split)`, in the order of the batch.

    Raises:
        ValueError: An argument is out of range, or the split is empty.

    Example:

    >>> data.batch_names(data.Shapes(train=9), batch_size=3, step=4, shuffle=False)
    ['train_00003', 'train_00004', 'train_00005']
    """
    count = _checked_count(source, split, batch_size)
    first = checked_step("step", step) * batch_size
    numbers = image_numbers(count, run_key(seed, "order"), shuffle=shuffle, first=first)
    names = source.names(split)
    return [names[number] for number in numbers.take(batch_size).as_numpy_iterator()]


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
    dataset = decoded_pairs(source, split, count, cache).map(
        lambda image, label: (tf.cast(image, tf.float32), tf.cast(label, tf.int32)),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    dataset = dataset.padded_batch(
        batch_size, ((None, None, 3), (None, None)), (MEAN_COLOR, IGNORE_LABEL)
    )
    return dataset.prefetch(tf.data.AUTOTUNE).with_options(_whole_batches())


def _whole_batches() -> tf.data.Options:
    """Options under which the workers of `tf.distribute` together see one process's batches.

    A batch is split among all replicas first. DATA then lets every worker compute the same stream
    and keep its own pieces of each batch, so nothing is lost or comes twice, in the very order of a
    single process; the price is that each worker decodes and augments the whole global batch. FILE
    (which AUTO tries first) would give workers other files, OFF the same piece to all of them, and
    HINT does not run outside of a multi-worker strategy. One process with several replicas does
    not shard at all.
    """
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return options


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
