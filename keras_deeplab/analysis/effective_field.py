"""The effective receptive field: how much each pixel of the image changes an output."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from keras_deeplab.graph.features import tensor_of
from keras_deeplab.graph.geometry import geometry
from keras_deeplab.graph.kinds import Kind, kind
from keras_deeplab.graph.network import Functional, functional
from keras_deeplab.validation import error, integer, pair

SIDE = 257  # of random images
COUNT = 4
MASS = 0.95
LARGER = {Kind.UPSAMPLE, Kind.RESIZE_LIKE, Kind.TRANSPOSED}  # kinds that add samples


@dataclass(frozen=True)
class EffectiveField:
    """The influence of the pixels on an output at the centre of the image.

    Attributes:
        map: float32 `(height, width)`, at least 0, with a sum of 1.
        center: Row and column of the pixel at which the output lies.
    """

    map: np.ndarray
    center: tuple[int, int]

    @property
    def side(self) -> int:
        """Side in pixels of the square around the centre that holds 95 % of the influence."""
        height, width = self.map.shape
        rows, columns = np.ogrid[:height, :width]
        distance = np.maximum(abs(rows - self.center[0]), abs(columns - self.center[1]))
        held = np.cumsum(np.bincount(distance.reshape(-1), self.map.reshape(-1)))
        return 2 * int(np.searchsorted(held, MASS * held[-1])) + 1


def effective_receptive_field(
    model: keras.Model,
    images: np.ndarray | None = None,
    layer: str | None = None,
    size: tuple[int, int] | None = None,
    seed: int = 0,
) -> EffectiveField:
    """Measures the effective receptive field: the mean gradient of an output at the centre.

    It is smaller than the theoretical field, since most paths lead through the centre of the
    kernels. The gradient is of all channels with random weights, in absolute values, averaged over
    the images. In networks with initial weights, estimate the statistics of the batch norms first
    (`reestimate_batch_norm`), as activations vanish otherwise.

    Args:
        model: A functional segmentation model or network on pixels in 0..255.
        images: `(batch, height, width, channels)` in 0..255; random images by default.
        layer: Name of the layer whose output is taken; by default the model's output.
        size: `(height, width)` of random images; 257x257 by default, or the model's own size.
        seed: Seed of random images and of the channels' weights.

    Returns:
        An `EffectiveField`.

    Raises:
        ValueError: If an argument is out of its range, or the output does not depend on the image.

    Example:

    >>> network = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(8, 5)])
    >>> field = keras_deeplab.analysis.effective_receptive_field(network, size=(33, 33))
    >>> field.map.shape, field.center, field.side
    ((33, 33), (16, 16), 5)

    Reference:
        [Luo et al., 2016](https://arxiv.org/abs/1701.04128), section 3.
    """
    network = differentiable(model)
    seed = integer("seed", seed, minimum=0)
    rng = np.random.default_rng(seed)
    if images is None:
        own = network.inputs[0].shape[1:]
        sides = pair("size", size) if size else [side or SIDE for side in own[:2]]
        images = rng.uniform(0, 255, (COUNT, *sides, own[2]))
    images = np.asarray(images, np.float32)
    if images.ndim != 4 or not images.size:
        raise error("images", "(batch, height, width, channels)", images.shape)
    output = network.outputs[0] if layer is None else tensor_of(model, layer)
    part = keras.Model(network.inputs, output)
    pixels = tf.constant(images)
    with tf.GradientTape() as tape:
        tape.watch(pixels)
        features = tf.cast(part(pixels, training=False), tf.float32)
        if features.shape.rank != 4:
            raise error("layer", "one whose output has a height and a width", layer)
        place = tuple(n // 2 for n in features.shape[1:3])
        weights = rng.choice([-1.0, 1.0], (len(images), features.shape[-1]))
        loss = tf.reduce_sum(features[:, place[0], place[1]] * tf.constant(weights, tf.float32))
    found = tape.gradient(loss, pixels, unconnected_gradients="zero").numpy()
    shares = influence_shares(found, f"at the output of {layer or 'the model'}")
    centre = _pixel(part, place, features.shape[1:3], images.shape[1:3])
    return EffectiveField(shares.mean(0).astype(np.float32), centre)


def _pixel(
    model: Functional, place: tuple[int, int], samples: tuple[int, int], size: tuple[int, int]
) -> tuple[int, int]:
    """The pixel at which a sample of the output lies.

    By its stride and offset; by proportion where these are not known, and in a map that is made
    larger, whose offset is that of the coarser samples.
    """
    found = [(k + 0.5) * side / n for k, n, side in zip(place, samples, size, strict=True)]
    with suppress(ValueError):
        whole = geometry(model, *size)
        output = whole.output
        kinds = {kind(call.operation, call.path, call.rank) for call, _, _ in whole.calls}
        if None not in output.stride + output.offset and not kinds & LARGER:
            axes = zip(place, output.stride, output.offset, strict=True)
            found = [offset + k * stride for k, stride, offset in axes]
    return tuple(min(max(int(x), 0), side - 1) for x, side in zip(found, size, strict=True))


def differentiable(model: keras.Model) -> Functional:
    """Returns the functional graph of a model on pixels that have a gradient, or raises."""
    network = functional(model)
    dtype = tf.as_dtype(network.inputs[0].dtype)
    if not dtype.is_floating:
        raise error("model", "a network with an input of floating-point numbers", dtype.name)
    return network


def influence_shares(gradients: np.ndarray, where: str) -> np.ndarray:
    """Returns the share of each pixel in an image's gradient: `(batch, height, width)`, sums 1."""
    found = abs(gradients.astype(float)).sum(3)
    sums = found.sum((1, 2), keepdims=True)
    if not (np.isfinite(sums) & (sums > 0)).all():
        received = "gradients of 0" if np.isfinite(sums).all() else "NaN or infinite gradients"
        raise error(
            "model",
            "one whose output depends on the image, with finite gradients",
            f"{received} {where}",
            "Initial weights need batch-norm statistics: see `reestimate_batch_norm`. float16 "
            "gradients can vanish or overflow: see `with_dtype`.",
        )
    return found / sums
