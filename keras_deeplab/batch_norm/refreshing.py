"""Statistics of batch norms, taken anew from images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from numbers import Integral
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_deeplab.batch_norm.policy import all_norms
from keras_deeplab.graph.network import functional


@dataclass
class _Mixture:
    """Mean and variance of all values seen so far, channel by channel, in float64."""

    count: float = 0.0
    mean: Any = 0.0
    variance: Any = 0.0

    def add(self, count: Any, mean: Any, variance: Any) -> None:
        """Takes one more batch in: the variance within the batches and that between them."""
        count = float(count)
        if not count:
            return
        total = self.count + count
        share = count / total
        between = np.asarray(mean, np.float64) - self.mean
        within = self.variance + share * (np.asarray(variance, np.float64) - self.variance)
        self.variance = within + share * (1 - share) * between**2
        self.mean = self.mean + share * between
        self.count = total


def refresh_batch_norm(model: keras.Model, dataset: Iterable[Any], steps: int | None = None) -> int:
    """Estimates the moving statistics of a model's batch norms anew, from images.

    Moving averages lag behind the weights, and fit neither another output stride nor weights that
    came from elsewhere. Here every batch runs through the model as in training, normalised by its
    own statistics, but without dropout; each norm's moving mean and variance become those of all
    values it has seen in all batches together. Weights are left alone, and so are norms that are
    frozen (`trainable` or statistics), which go on normalising by what they have. Behind global
    pooling give batches of two images or more: a single value is normalised by the old statistics,
    and where there was no other they stay.

    Args:
        model: A functional model.
        dataset: Batches of images as the model takes them, or tuples that begin with them, as for
            `fit`: a `tf.data.Dataset`, or any iterable. All images of a small data set are best.
        steps: How many batches are taken at most; None for all.

    Returns:
        The number of batch norms with new statistics.

    Raises:
        ValueError: If there are no batches or endlessly many, `steps` is out of its range, a norm
            uses a mask or `renorm`, or statistics are not finite. The model is as it was then, and
            also after any other error.

    Example:

    >>> model = keras_deeplab.DeepLabV3(3, "mobilenet_v2", output_stride=16)
    >>> fine = model.with_output_stride(8)
    >>> images = np.random.default_rng(0).uniform(0, 255, (4, 65, 65, 3))
    >>> keras_deeplab.refresh_batch_norm(fine, tf.data.Dataset.from_tensor_slices(images).batch(2))
    58
    """
    network = getattr(model, "training_graph", None) or model  # with heads of training alone
    norms = {
        path: norm
        for path, norm in all_norms(model).items()
        if norm.trainable and not getattr(norm, "frozen_statistics", False)
    }
    batches = _batches(dataset, steps)
    mixtures = {path: _Mixture() for path in norms}
    measure = _measuring(network, norms)
    seen = 0
    for seen, batch in enumerate(batches, 1):  # noqa: B007 - the last number counts
        for path, moments in measure(batch[0] if isinstance(batch, tuple) else batch).items():
            for one in moments:
                mixtures[path].add(*(value.numpy() for value in one))
    if not seen:
        raise ValueError("`dataset` must hold at least one batch, received none.")
    # One value has no variance: what is divided by its 0 would be three hundred times too large.
    fresh = {path: mixture for path, mixture in mixtures.items() if mixture.count > 1}
    broken = [p for p, m in fresh.items() if not np.isfinite([m.mean, m.variance]).all()]
    if broken:
        raise ValueError(
            "The statistics of the layers "
            f"{', '.join(broken)} are not finite on `dataset`: nothing was changed."
        )
    for path, mixture in fresh.items():
        norms[path].moving_mean.assign(mixture.mean)
        norms[path].moving_variance.assign(mixture.variance)
    return len(fresh)


def _batches(dataset: Iterable[Any], steps: int | None) -> Iterator[Any]:
    if steps is not None and (
        not isinstance(steps, Integral) or isinstance(steps, bool) or steps < 1
    ):
        raise ValueError(f"`steps` must be a positive integer or None, received {steps!r}.")
    if (
        steps is None
        and isinstance(dataset, tf.data.Dataset)
        and dataset.cardinality() == tf.data.INFINITE_CARDINALITY
    ):
        raise ValueError("`dataset` repeats without end: `steps` must be given, received None.")
    return islice(dataset, steps)


def _measuring(
    network: keras.Model, norms: dict[str, keras.layers.BatchNormalization]
) -> Callable[[Any], dict[str, list[Any]]]:
    """A function from images to the moments that each norm meets, traced once for all sizes."""
    specs = keras.tree.map_structure(
        lambda x: tf.TensorSpec(x.shape, x.dtype), functional(network).input
    )

    @tf.function(input_signature=[specs], autograph=False)
    def traced(images: Any) -> dict[str, list[Any]]:
        moments: dict[str, list[Any]] = {path: [] for path in norms}
        with _watching(norms, moments):
            network(images, training=False)
        return moments

    def measure(images: Any) -> dict[str, list[Any]]:
        return traced(keras.tree.map_structure(lambda s, x: tf.cast(x, s.dtype), specs, images))

    return measure


@contextmanager
def _watching(
    norms: dict[str, keras.layers.BatchNormalization], moments: dict[str, list[Any]]
) -> Iterator[None]:
    """Inside, the norms normalise by the batch and note its moments; outside they are untouched."""
    try:
        for path, norm in norms.items():
            norm.call = _noting(path, norm, moments[path])
        yield
    finally:
        for norm in norms.values():
            del norm.call  # the class's own again


def _noting(
    path: str, norm: keras.layers.BatchNormalization, noted: list[Any]
) -> Callable[..., tf.Tensor]:
    def call(inputs: tf.Tensor, training: bool | None = None, mask: Any = None) -> tf.Tensor:  # noqa: ARG001
        if mask is not None or norm.renorm:
            raise ValueError(f"The layer '{path}' uses a mask or `renorm`: it cannot be refreshed.")
        x = tf.cast(inputs, tf.float32)
        axes = [axis for axis in range(len(x.shape)) if axis != norm.axis % len(x.shape)]
        count = tf.reduce_prod(tf.gather(tf.shape(x, tf.int64), axes))
        moments = tf.nn.moments(x, axes)
        noted.append((count, *moments))
        moving = (_float32(norm.moving_mean), _float32(norm.moving_variance))
        # A single value has no variance to be normalised by.
        used = (tf.where(count > 1, *pair) for pair in zip(moments, moving, strict=True))
        scaling = (_float32(norm.beta), _float32(norm.gamma))
        outputs = keras.ops.batch_normalization(x, *used, norm.axis, *scaling, norm.epsilon)
        return tf.cast(outputs, norm.compute_dtype)

    return call


def _float32(variable: keras.Variable | None) -> tf.Tensor | None:
    return None if variable is None else tf.cast(variable, tf.float32)
