"""The order and the augmentation seeds of images in a run, as functions of seed and position.

They are stateless, so that a run can resume anywhere. A run is a sequence of rounds (passes over a
split), whose order and seeds derive from the run's seed and the round's number.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from keras_deeplab import validation

Stream = Callable[[tf.Tensor], tf.data.Dataset]


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


def image_numbers(count: int, key: tf.Tensor, *, shuffle: bool, first: int = 0) -> tf.data.Dataset:
    """Returns the infinite dataset of positions 0..count-1 in a split, each once a round."""

    def one_round(number: tf.Tensor) -> tf.Tensor:
        positions = tf.range(count, dtype=tf.int64)
        if not shuffle:
            return positions
        return tf.random.experimental.stateless_shuffle(positions, tf.random.fold_in(key, number))

    return _rounds(one_round, count, first)


def image_seeds(count: int, key: tf.Tensor, *, first: int = 0) -> tf.data.Dataset:
    """Returns the infinite dataset of seeds int64 `(2,)`, starting with that of image `first`."""

    def one_round(number: tf.Tensor) -> tf.Tensor:
        # A whole round at once takes a tenth of the time of one by one.
        return tf.random.split(tf.random.fold_in(key, number), count)

    return _rounds(one_round, count, first)


def _rounds(one_round: Callable[[tf.Tensor], tf.Tensor], count: int, first: int) -> tf.data.Dataset:
    """The slices of all rounds, starting with `first`; earlier rounds are not computed."""
    rounds = tf.data.Dataset.counter(first // count)
    slices = rounds.flat_map(lambda number: tf.data.Dataset.from_tensor_slices(one_round(number)))
    return slices.skip(first % count)


def reseeded_each_iteration(key: np.ndarray, stream: Stream) -> tf.data.Dataset:
    """Returns a dataset that is `stream` of a new key, derived from `key`, in each iteration."""
    draws = tf.data.Dataset.random(seed=0, rerandomize_each_iteration=True).take(1)
    return draws.flat_map(lambda draw: stream(tf.random.fold_in(key, draw)))
