"""Decoded images that several elements of a dataset share, by reference.

A reference is a list of one tensor, as images differ in size.
"""

from __future__ import annotations

import tensorflow as tf

ANY_SHAPE = -1


def from_memory(pairs: tf.data.Dataset, count: int, numbers: tf.data.Dataset) -> tf.data.Dataset:
    """Returns the elements of `pairs`, all kept in memory, at the positions `numbers`.

    `Dataset.cache` alone only iterates in order. So it caches one element: the references to all
    tensors, which can be read at any position without a copy.
    """
    specs = pairs.element_spec
    # Outside of functions of `numbers`, so that it lives as long as the dataset.
    kept = _references(pairs).batch(count).cache().repeat()
    return tf.data.Dataset.zip((numbers, kept)).map(
        lambda number, references: pair(references[number], specs)
    )


def with_next(pairs: tf.data.Dataset, size: int) -> tf.data.Dataset:
    """Returns references to each pair and the `size - 1` after it, each decoded once.

    The order is random, so those are random images of the split.
    """
    references = _references(pairs)
    if size == 1:
        return references.batch(1)
    windows = references.window(size, shift=1, drop_remainder=True)
    return windows.flat_map(lambda window: window.batch(size))


def _references(pairs: tf.data.Dataset) -> tf.data.Dataset:
    return pairs.map(lambda *tensors: tf.stack([_reference(tensor) for tensor in tensors]))


def _reference(tensor: tf.Tensor) -> tf.Tensor:
    empty = tf.raw_ops.EmptyTensorList(
        element_shape=ANY_SHAPE, max_num_elements=1, element_dtype=tensor.dtype
    )
    return tf.raw_ops.TensorListPushBack(input_handle=empty, tensor=tensor)


def pair(references: tf.Tensor, specs: tuple[tf.TensorSpec, ...]) -> tuple[tf.Tensor, ...]:
    """Returns the tensors of one element, without a copy."""
    return tuple(_tensor(references[index], spec) for index, spec in enumerate(specs))


def _tensor(reference: tf.Tensor, spec: tf.TensorSpec) -> tf.Tensor:
    tensor = tf.raw_ops.TensorListGetItem(
        input_handle=reference, index=0, element_shape=ANY_SHAPE, element_dtype=spec.dtype
    )
    return tf.ensure_shape(tensor, spec.shape)
