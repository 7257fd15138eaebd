"""Which image comes where in a run, and what it is augmented by: functions of seed and position.

Nothing here is drawn from a state. A run is a sequence of rounds (passes over a split); the order
of a round and the seeds of its images are drawn at once, from the run's seed and the round's
number. So a run can be entered anywhere.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable

import numpy as np
import tensorflow as tf


def run_key(seed: int, purpose: str) -> np.ndarray:
    """Returns a key int64 `(2,)` for TensorFlow's stateless random numbers.

    A hash, because seeds of any size count whole in it, and because neighbouring seeds, and order
    and augmentation under one seed, must have nothing to do with each other.
    """
    try:
        text = f"{purpose} {operator.index(seed)}"
    except TypeError as error:
        raise ValueError(f"`seed` must be an integer. Received: seed={seed!r}") from error
    return np.frombuffer(hashlib.sha256(text.encode()).digest()[:16], "<i8").astype(np.int64)


def image_numbers(count: int, key: tf.Tensor, *, shuffle: bool, first: int = 0) -> tf.data.Dataset:
    """Returns the endless stream of positions 0..count-1 in a split, from the `first` on.

    Each round holds every position once.
    """

    def one_round(number: tf.Tensor) -> tf.Tensor:
        positions = tf.range(count, dtype=tf.int64)
        if not shuffle:
            return positions
        return tf.random.experimental.stateless_shuffle(positions, tf.random.fold_in(key, number))

    return _rounds(one_round, count, first)


def image_seeds(count: int, key: tf.Tensor, *, first: int = 0) -> tf.data.Dataset:
    """Returns the endless stream of the seeds int64 `(2,)` of image `first` of a run and later."""

    def one_round(number: tf.Tensor) -> tf.Tensor:
        # All of a round at once, which costs a tenth of one after the other.
        return tf.random.split(tf.random.fold_in(key, number), count)

    return _rounds(one_round, count, first)


def _rounds(one_round: Callable[[tf.Tensor], tf.Tensor], count: int, first: int) -> tf.data.Dataset:
    """The slices of all rounds, from the `first` on; no round before the first's is computed."""
    rounds = tf.data.Dataset.counter(first // count)
    slices = rounds.flat_map(lambda number: tf.data.Dataset.from_tensor_slices(one_round(number)))
    return slices.skip(first % count)


def anew_each_time(
    key: np.ndarray, stream: Callable[[tf.Tensor], tf.data.Dataset]
) -> tf.data.Dataset:
    """Returns a dataset whose every iteration is the stream of another key that `key` decides."""
    draws = tf.data.Dataset.random(seed=0, rerandomize_each_iteration=True).take(1)
    return draws.flat_map(lambda draw: stream(tf.random.fold_in(key, draw)))


def checked_step(name: str, step: int) -> int:
    """Returns the number of a batch, or raises a ValueError where it is none."""
    try:
        number = operator.index(step)
    except TypeError:
        number = -1
    if number < 0:
        raise ValueError(f"`{name}` must be an integer from 0 on. Received: {name}={step!r}")
    return number
