"""Decoded images cached in memory, with access by position."""

from __future__ import annotations

import os

import tensorflow as tf

from keras_deeplab import validation
from keras_deeplab.data.source import Source

CACHE_LIMIT = 2 * 1024**3
ANY_SHAPE = -1


def decoded_pairs(
    source: Source,
    split: str,
    count: int,
    cache: bool | str,
    numbers: tf.data.Dataset | None = None,
) -> tf.data.Dataset:
    """The decoded pairs of a split at the positions `numbers`, cached if they fit into memory."""
    validation.one_of("cache", cache, (True, False, "auto"))
    if cache == "auto":
        cache = source.decoded_bytes(split) <= _cache_limit()
    if not cache:
        return source.checked_dataset(split, numbers)
    pairs = source.checked_dataset(split)
    return pairs.cache() if numbers is None else from_memory(pairs, count, numbers)


def from_memory(pairs: tf.data.Dataset, count: int, numbers: tf.data.Dataset) -> tf.data.Dataset:
    """Returns the elements of `pairs`, all kept in memory, at the positions `numbers`.

    `Dataset.cache` alone only iterates in order. So it caches one element: a vector of references
    to all tensors (lists of one, as images differ in size), which can be read at any position
    without a copy.
    """
    specs = pairs.element_spec
    # Outside of functions of `numbers`, so that it lives as long as the dataset.
    kept = pairs.map(lambda *tensors: tf.stack([_reference(tensor) for tensor in tensors]))
    kept = kept.batch(count).cache().repeat()

    def read(number: tf.Tensor, references: tf.Tensor) -> tuple[tf.Tensor, ...]:
        of_pair = references[number]
        return tuple(_tensor(of_pair[index], spec) for index, spec in enumerate(specs))

    return tf.data.Dataset.zip((numbers, kept)).map(read)


def _reference(tensor: tf.Tensor) -> tf.Tensor:
    empty = tf.raw_ops.EmptyTensorList(
        element_shape=ANY_SHAPE, max_num_elements=1, element_dtype=tensor.dtype
    )
    return tf.raw_ops.TensorListPushBack(input_handle=empty, tensor=tensor)


def _tensor(reference: tf.Tensor, spec: tf.TensorSpec) -> tf.Tensor:
    tensor = tf.raw_ops.TensorListGetItem(
        input_handle=reference, index=0, element_shape=ANY_SHAPE, element_dtype=spec.dtype
    )
    return tf.ensure_shape(tensor, spec.shape)


def _cache_limit() -> int:
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return CACHE_LIMIT
    return min(CACHE_LIMIT, memory // 4)
