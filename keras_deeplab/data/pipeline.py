"""The pipelines for training and evaluation."""

from __future__ import annotations

import hashlib
import operator
import os
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from keras_deeplab import validation
from keras_deeplab.data.augmentation.augmenting import Augmentation, Transform
from keras_deeplab.data.augmentation.color import ColorJitter
from keras_deeplab.data.augmentation.crops import MEAN_COLOR
from keras_deeplab.data.opening import open_source
from keras_deeplab.data.references import from_memory, pair, with_next
from keras_deeplab.data.source import IGNORE_LABEL, Source
from keras_deeplab.memory import available_memory

CACHE_LIMIT = 2 * 1024**3
# Parts and windows begin at multiples of the coarsest stride, so that the features of each are
# samples of those of the whole image.
GRID = 32


def training_dataset(
    source: Source | str | os.PathLike,
    split: str = "train",
    *,
    crop_size: int | tuple[int, int],
    batch_size: int = 8,
    scales: tuple[float, float] = (0.5, 2.0),
    scale_step: float | None = None,
    flip: bool | str = True,
    color_jitter: ColorJitter = 0.2,
    class_focus: float = 0.0,
    rotation: tuple[float, float] | None = None,
    blur: tuple[float, float] | None = None,
    jpeg_quality: tuple[float, float] | None = None,
    cutout: float = 0.0,
    copy_paste: float = 0.0,
    copy_paste_classes: Sequence[str] | None = None,
    mosaic: float = 0.0,
    transform: Transform | None = None,
    shuffle: bool = True,
    seed: int = 0,
    cache: bool | str = "auto",
    repeat: bool = False,
    first_step: int = 0,
) -> tf.data.Dataset:
    """Returns shuffled, augmented batches of one size for `model.fit`.

    Each epoch contains every image once; the last batch is filled from the next pass, so that
    all batches are full (batch norms need several images) and none is dropped. The same seed gives
    the same batches, which differ from epoch to epoch.

    With `repeat=True` the dataset is infinite, and each batch a function of the seed and its number
    alone: every iteration is the same, `first_step=k` starts at batch `k` (bit-identical to
    `.skip(k)`, without its cost), and `data.batch_names` lists the images of a batch. So a run
    resumes after `k` steps with the batches it would have had. Without `repeat` the batches depend
    on how often the dataset was iterated before.

    The other images of `copy_paste` and `mosaic` are the next ones in the random order, so that
    they are not decoded again.

    Args:
        source: A `data.Source`, or what `data.open_source` takes.
        split: One of `source.splits`.
        crop_size: `(height, width)` of all images, or one integer for both; smaller ones are
            padded, at a random place, with grey 127.5 and the label with 255.
        batch_size: Images per batch.
        scales: Smallest and largest random scale. Images are scaled bilinearly (antialiased where
            they shrink), labels by nearest neighbour.
        scale_step: Step between the scales, from the smallest, such as DeepLabV3+'s 0.25; None for
            any scale between.
        flip: Whether to mirror left to right at random, or `"horizontal"` for the same,
            `"vertical"` for upside down, or `"horizontal_and_vertical"` for both.
        color_jitter: Largest changes of colour and light, in 0..1: a mapping with some of
            `"brightness"`, `"contrast"`, `"saturation"`, `"gamma"` and `"white_balance"`, a number
            for the first three, or None. White balance multiplies each channel by a factor of its
            own in 1 - strength .. 1 + strength, gamma is an exponent between 1 / (1 + strength) and
            1 + strength.
        class_focus: Share of the crops in 0..1 that are centred on a random pixel of a random class
            of the label map, so that rare and thin classes occur more often.
        rotation: Range of angles in degrees, counterclockwise, such as `(-10, 10)` (PSPNet,
            1612.01105, section 5.1). Corners outside the image become grey 127.5 and 255.
        blur: Range of standard deviations in pixels of a Gaussian blur, such as `(0, 2)` (PSPNet).
        jpeg_quality: Range of qualities, 1 to 100, at which images are compressed, such as
            `(30, 100)` (Hendrycks and Dietterich, 1903.12261); for images of 1 or 3 channels.
        cutout: Largest share of an image, in 0..1, that a rectangle cuts out (Cutout, 1708.04552;
            sides at most 2 to 1): it becomes grey 127.5, and 255 in the label map, as French et al.
            (1906.01916) leave it out of the loss.
        copy_paste: Share of the images, in 0..1, onto which `copy_paste_classes` of another image
            are pasted: all their pixels in a crop around one of them (Ghiasi et al., 2012.07177).
        copy_paste_classes: Names of these classes, usually the rare ones.
        mosaic: Share of the images, in 0..1, that are made of four, each augmented alone, around a
            random point (YOLOv4, 2004.10934, section 3.3).
        transform: Your own function of image, label map and a seed int64 `(2,)` for
            `tf.random.stateless_uniform` and the like, called with each augmented crop (float32
            `(height, width, channels)` in 0..255 and int32 `(height, width)`); returns both in the
            same shapes. If it is a function of its arguments alone, a run can resume bit for bit.
            For albumentations see `data.from_albumentations`.
        shuffle: Whether to shuffle the whole split in every epoch.
        seed: Seed of order and augmentation: any integer.
        cache: Whether to decode all images for the first batch and to keep them in memory; `"auto"`
            does if they take less than 2 GiB and a quarter of the free memory.
        repeat: Whether the dataset is infinite, for `steps_per_epoch`.
        first_step: Number of the first batch, from 0; requires `repeat=True`.

    Returns:
        A dataset of known cardinality with batches `(image, label)`: float32
        `(batch, height, width, channels)` in 0..255 and int32 `(batch, height, width)` with 255
        ignored; `channels` are those of `source.info`.

    Raises:
        ValueError: If an argument is out of range, or the split is empty.

    Example:

    >>> train = data.training_dataset(data.Shapes(), crop_size=(128, 128), batch_size=8)
    >>> model.fit(train, epochs=20)
    """
    source = open_source(source)
    count = _checked_count(source, split, batch_size)
    augmentation = Augmentation(
        crop_size=crop_size,
        scales=scales,
        scale_step=scale_step,
        flip=flip,
        color_jitter=color_jitter,
        class_focus=class_focus,
        rotation=rotation,
        blur=blur,
        jpeg_quality=jpeg_quality,
        cutout=cutout,
        copy_paste=copy_paste,
        copy_paste_classes=copy_paste_classes,
        mosaic=mosaic,
        transform=transform,
        classes=source.info.classes,
    )
    first = validation.integer("first_step", first_step, minimum=0) * batch_size
    if first and not repeat:
        raise validation.error("first_step", "0 unless repeat=True", first_step)

    order, changes = run_key(seed, "order"), run_key(seed, "augmentation")
    if repeat:
        numbers = positions(count, order, shuffle, first)
        seeds = augmentation_seeds(count, changes, first)
    else:  # with other keys in each iteration
        draw = tf.data.Dataset.random(seed=0, rerandomize_each_iteration=True).take(1)
        numbers = draw.flat_map(
            lambda number: positions(count, tf.random.fold_in(order, number), shuffle)
        )
        seeds = draw.flat_map(
            lambda number: augmentation_seeds(count, tf.random.fold_in(changes, number))
        )

    pairs = _decoded_pairs(source, split, count, cache, numbers)
    specs = pairs.element_spec
    augmentation.check_channels(specs[0].shape[-1] or 3)

    @tf.autograph.experimental.do_not_convert  # AutoGraph takes seconds and has nothing to convert
    def augmented(references: tf.Tensor, image_seed: tf.Tensor):
        group = [pair(references[number], specs) for number in range(augmentation.images)]
        return augmentation(group, image_seed)

    groups = with_next(pairs, augmentation.images)
    dataset = tf.data.Dataset.zip((groups, seeds))
    dataset = dataset.map(augmented, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    steps = tf.data.INFINITE_CARDINALITY if repeat else -(-count // batch_size)
    dataset = dataset.batch(batch_size, drop_remainder=True)
    if not repeat:
        dataset = dataset.take(steps)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(steps))
    return dataset.prefetch(tf.data.AUTOTUNE).with_options(_sharding_options())


def batch_names(
    source: Source | str | os.PathLike,
    split: str = "train",
    *,
    step: int,
    batch_size: int = 8,
    shuffle: bool = True,
    seed: int = 0,
) -> list[str]:
    """Returns the names of the images in a batch of `data.training_dataset` with `repeat=True`.

    With `copy_paste` or `mosaic` a batch also contains parts of the images that come next.

    Args:
        source: A `data.Source`, or what `data.open_source` takes.
        split: One of `source.splits`.
        step: Number of the batch in the run, from 0.
        batch_size: As given to `data.training_dataset`, like the next two.
        shuffle: Whether the split is shuffled.
        seed: Seed of the order.

    Returns:
        `batch_size` of the names in `source.names(split)`, in the order of the batch.

    Raises:
        ValueError: If an argument is out of range, or the split is empty.

    Example:

    >>> data.batch_names(data.Shapes(train=9), batch_size=3, step=4, shuffle=False)
    ['train_00003', 'train_00004', 'train_00005']
    """
    source = open_source(source)
    count = _checked_count(source, split, batch_size)
    first = validation.integer("step", step, minimum=0) * batch_size
    numbers = positions(count, run_key(seed, "order"), shuffle, first).take(batch_size)
    names = source.names(split)
    return [names[number] for number in numbers.as_numpy_iterator()]


def evaluation_dataset(
    source: Source | str | os.PathLike,
    split: str = "val",
    batch_size: int = 1,
    *,
    part_size: int | None = None,
    cache: bool | str = "auto",
) -> tf.data.Dataset:
    """Returns whole images at their own size, in the order of `source.names(split)`.

    Args:
        source: A `data.Source`, or what `data.open_source` takes.
        split: One of `source.splits`.
        batch_size: Images per batch; the last batch may be smaller. In a batch of several sizes
            smaller images are padded at the right and the bottom with grey 127.5, labels with 255.
        part_size: Largest height and width in pixels, at least 32: larger images are cut into parts
            without overlap, each a batch of its own, for a `model.fit` whose memory they would
            exceed. To count the parts, all label maps are read once, or all images of a source
            without files. None for whole images.
        cache: Whether to keep the images that the first pass decodes in memory; `"auto"` as in
            `data.training_dataset`.

    Returns:
        A dataset of known cardinality with batches `(image, label)`: float32
        `(batch, height, width, channels)` in 0..255 and int32 `(batch, height, width)` with 255
        ignored; `channels` are those of `source.info`.

    Raises:
        ValueError: If an argument is out of range, or the split is empty.

    Example:

    >>> model.evaluate(data.evaluation_dataset(data.Shapes()))
    """
    source = open_source(source)
    count = _checked_count(source, split, batch_size)
    if part_size is not None:
        part_size = validation.integer("part_size", part_size, minimum=GRID)
    dataset = _decoded_pairs(source, split, count, cache).map(
        lambda image, label: (tf.cast(image, tf.float32), tf.cast(label, tf.int32)),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    dataset = dataset.padded_batch(
        batch_size, ((None, None, source.info.channels), (None, None)), (MEAN_COLOR, IGNORE_LABEL)
    )
    if part_size is not None:
        dataset = dataset.flat_map(lambda images, labels: _parts(images, labels, part_size))
        if sizes := source.label_sizes(split):
            sides = np.maximum.reduceat(sizes, range(0, count, batch_size))  # of each batch
            parts = tf.reduce_sum(tf.reduce_prod(_part_grid(sides, part_size)[0], axis=1))
        else:  # one pass, which fills the cache
            parts = dataset.reduce(np.int64(0), lambda number, *_: number + 1)
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(parts))
    return dataset.prefetch(tf.data.AUTOTUNE).with_options(_sharding_options())


def _parts(images: tf.Tensor, labels: tf.Tensor, part_size: int) -> tf.data.Dataset:
    """The parts of about equal size of a batch, each of at most `part_size` pixels a side."""
    sides = tf.shape(labels)[1:]
    _, steps = _part_grid(sides, part_size)
    begins = [tf.range(0, sides[axis], steps[axis]) for axis in (0, 1)]
    corners = tuple(tf.reshape(one, [-1]) for one in tf.meshgrid(*begins, indexing="ij"))

    def part(top: tf.Tensor, left: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        window = (slice(None), slice(top, top + steps[0]), slice(left, left + steps[1]))
        return images[window], labels[window]

    return tf.data.Dataset.from_tensor_slices(corners).map(part)


def _part_grid(sides: tf.Tensor | np.ndarray, part_size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The numbers of parts along the sides of an image, and the sides of all but the last."""
    least = -(-sides // part_size)
    steps = tf.minimum(-(-sides // least // GRID) * GRID, part_size)
    return -(-sides // steps), steps


def _sharding_options() -> tf.data.Options:
    """Options with which the workers of `tf.distribute` get the batches of a single process.

    With DATA each worker computes all batches and keeps its part of each. FILE (which AUTO tries
    first) would give workers other files, OFF the same part to all, and HINT requires a
    multi-worker strategy. One process with several replicas does not shard.
    """
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return options


def _checked_count(source: Source, split: str, batch_size: int) -> int:
    source.check_split(split)
    validation.integer("batch_size", batch_size)
    count = len(source.names(split))
    if not count:
        raise validation.error("split", "a split with at least one image", split)
    return count


def _decoded_pairs(
    source: Source,
    split: str,
    count: int,
    cache: bool | str,
    numbers: tf.data.Dataset | None = None,
) -> tf.data.Dataset:
    """The decoded pairs of a split at the positions `numbers`, cached if they fit into memory."""
    validation.one_of("cache", cache, (True, False, "auto"))
    if cache == "auto":
        cache = source.decoded_bytes(split) <= min(CACHE_LIMIT, available_memory() // 4)
    if not cache:
        return source.checked_dataset(split, numbers)
    pairs = source.checked_dataset(split)
    if numbers is None:
        return pairs.cache()
    return from_memory(pairs, count, numbers)


def run_key(seed: int, purpose: str) -> np.ndarray:
    """Returns a key int64 `(2,)` for TensorFlow's stateless random numbers.

    A hash takes seeds of any size, and makes neighbouring seeds, and order and augmentation under
    one seed, independent.
    """
    try:
        text = f"{purpose} {operator.index(seed)}"
    except TypeError as error:
        raise validation.error("seed", "an integer", seed) from error
    return np.frombuffer(hashlib.sha256(text.encode()).digest()[:16], "<i8").astype(np.int64)


def positions(count: int, key: tf.Tensor, shuffle: bool, first: int = 0) -> tf.data.Dataset:
    """Returns the positions 0..count-1 of endless passes over a split, from image `first` on."""

    def one_pass(number: tf.Tensor) -> tf.Tensor:
        ordered = tf.range(count, dtype=tf.int64)
        if not shuffle:
            return ordered
        key_of_pass = tf.random.fold_in(key, number)
        return tf.random.experimental.stateless_shuffle(ordered, key_of_pass)

    return _endless_passes(one_pass, count, first)


def augmentation_seeds(count: int, key: tf.Tensor, first: int = 0) -> tf.data.Dataset:
    """Returns a seed int64 `(2,)` for each image of endless passes, from image `first` on."""

    def one_pass(number: tf.Tensor) -> tf.Tensor:
        return tf.random.split(tf.random.fold_in(key, number), count)

    return _endless_passes(one_pass, count, first)


def _endless_passes(
    one_pass: Callable[[tf.Tensor], tf.Tensor], count: int, first: int
) -> tf.data.Dataset:
    """The elements of passes of `count` images each.

    A pass is a function of its number alone, so that a run can resume anywhere, and computed at
    once, which takes a tenth of the time of one element after the other.
    """
    passes = tf.data.Dataset.counter(first // count)
    passes = passes.flat_map(lambda number: tf.data.Dataset.from_tensor_slices(one_pass(number)))
    return passes.skip(first % count)
