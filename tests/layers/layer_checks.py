"""What every layer must do, whatever it computes; and convolutions written as loops."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

CHANNELS = 3
SIZES = ((9, 8), (4, 13))


@dataclass(frozen=True)
class Case:
    """A layer to check: `make(dtype=...)` builds it; `reference` adds a second, larger input."""

    name: str
    make: Callable[..., keras.layers.Layer]
    reference: tuple[int, int] | None = None  # how much larger, in pixels

    def arrays(self, height: int, width: int, batch: int = 2) -> list[np.ndarray]:
        sizes = [(height, width)]
        if self.reference is not None:
            sizes.append((height + self.reference[0], width + self.reference[1]))
        return [picture(*size, batch) for size in sizes]

    def symbols(self) -> list[keras.KerasTensor]:
        count = 1 if self.reference is None else 2
        return [keras.Input((None, None, CHANNELS)) for _ in range(count)]


def picture(height: int, width: int, batch: int = 2) -> np.ndarray:
    random = np.random.default_rng(height)
    return random.normal(size=(batch, height, width, CHANNELS)).astype(np.float32)


def randomized(layer: keras.layers.Layer) -> keras.layers.Layer:
    """Gives all weights, moving statistics too, values under which a mistake shows."""
    random = np.random.default_rng(0)
    for weight in layer.weights:
        is_factor = "variance" in weight.name or weight.name == "gamma"
        low, high = (0.5, 1.5) if is_factor else (-0.5, 0.5)
        weight.assign(random.uniform(low, high, weight.shape))
    return layer


def check_layer(case: Case) -> None:
    """Eager, in a functional model, in a tf.function, from its configuration, in mixed precision.

    All give one result for images of two sizes, and gradients come through.
    """
    layer, symbols = case.make(), case.symbols()
    model = keras.Model(_pack(symbols), layer(*symbols))
    randomized(layer)
    spec = [tf.TensorSpec([None, None, None, CHANNELS])] * len(symbols)
    ways = [tf.function(layer, input_signature=spec), lambda *arrays: model(_pack(arrays))]
    ways.append(_from_configuration(layer, case))
    for size in SIZES:
        arrays = case.arrays(*size)
        eager = layer(*arrays)
        known = layer(*[keras.Input(x.shape[1:], batch_size=2) for x in arrays])
        assert tuple(known.shape) == tuple(eager.shape)
        assert keras.backend.standardize_dtype(eager.dtype) == known.dtype
        assert len(model.output_shape) == len(eager.shape)
        assert model.output_shape[-1] == eager.shape[-1]
        if case.reference is None:
            assert layer.compute_output_shape(arrays[0].shape) == tuple(eager.shape)
        for way in ways:
            np.testing.assert_allclose(way(*arrays), eager, rtol=1e-4, atol=1e-5)
    mixed = case.make(dtype="mixed_bfloat16")
    assert mixed(*symbols).dtype == "bfloat16"
    mixed.set_weights(layer.get_weights())
    output = mixed(*arrays)
    assert output.dtype == tf.bfloat16
    assert {weight.dtype for weight in mixed.weights} <= {"float32"}
    difference = np.abs(np.asarray(tf.cast(output, tf.float32)) - eager).max()
    assert difference < 0.05 * np.abs(eager).max()
    first, *others = map(tf.constant, arrays)
    with tf.GradientTape() as tape:
        tape.watch(first)
        loss = tf.reduce_sum(layer(first, *others, training=True) ** 2)
    gradient = tape.gradient(loss, first)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0


def _from_configuration(layer: keras.layers.Layer, case: Case) -> keras.layers.Layer:
    """The layer that a file would give."""
    ours = [c for c in type(layer).__mro__ if c.__module__.startswith("keras_deeplab")]
    own = [vars(c)["__init__"] for c in ours if "__init__" in vars(c)]
    names = {name for init in own for name in inspect.signature(init).parameters}
    assert names - {"self", "args", "kwargs"} <= set(layer.get_config())
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    copy = keras.saving.deserialize_keras_object(config)
    assert type(copy) is type(layer)
    assert copy.get_config() == layer.get_config()
    copy(*case.symbols())
    copy.set_weights(layer.get_weights())
    return copy


def _pack(values: list) -> object:
    return values if len(values) > 1 else values[0]


def convolve(x: np.ndarray, kernel: np.ndarray, pad: tuple[int, int], stride: int = 1):
    """A convolution of `(batch, height, width, in)` with `(rows, columns, in, out)`, as loops."""
    rows, columns = kernel.shape[:2]
    x = np.pad(x, ((0, 0), (pad[0], pad[0]), (pad[1], pad[1]), (0, 0)))
    height = (x.shape[1] - rows) // stride + 1
    width = (x.shape[2] - columns) // stride + 1
    y = np.zeros((x.shape[0], height, width, kernel.shape[3]))
    for i in range(height):
        for j in range(width):
            part = x[:, i * stride : i * stride + rows, j * stride : j * stride + columns]
            y[:, i, j] = np.einsum("brcd,rcdo->bo", part, kernel)
    return y


def zero_stuffed(kernel: np.ndarray, rate: tuple[int, int]) -> np.ndarray:
    """The kernel with `rate - 1` zeros between its taps."""
    rows, columns = ((n - 1) * r + 1 for n, r in zip(kernel.shape[:2], rate, strict=True))
    stuffed = np.zeros((rows, columns, *kernel.shape[2:]))
    stuffed[:: rate[0], :: rate[1]] = kernel
    return stuffed


def normalized(x: np.ndarray, norm: keras.layers.BatchNormalization) -> np.ndarray:
    """Batch norm at inference, by its formula."""
    gamma, beta, mean, variance = (weight.numpy() for weight in norm.weights)
    return (x - mean) / np.sqrt(variance + norm.epsilon) * gamma + beta


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def conv_by_hand(x: np.ndarray, layer, rate: tuple[int, int] = (1, 1), stride: int = 1):
    """Convolution, batch norm and ReLU of an AtrousConv2D's weights."""
    kernel = zero_stuffed(layer.conv.kernel.numpy(), rate)
    pad = (kernel.shape[0] // 2, kernel.shape[1] // 2)
    return relu(normalized(convolve(x, kernel, pad, stride), layer.norm))


def separable_by_hand(x: np.ndarray, layer, rate: int, between: bool = True) -> np.ndarray:
    """The layers inside an AtrousSeparableConv2D with a 3x3 kernel."""
    kernel = layer.depthwise.kernel.numpy()
    full = kernel * np.eye(kernel.shape[2])  # a channel of the output reads its own alone
    y = normalized(
        convolve(x, zero_stuffed(full, (rate, rate)), (rate, rate)), layer.depthwise_norm
    )
    y = convolve(relu(y) if between else y, layer.pointwise.kernel.numpy(), (0, 0))
    return relu(normalized(y, layer.pointwise_norm))
