"""What every layer must do, whatever it computes; and convolutions written as loops."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

CHANNELS = 3


@dataclass(frozen=True)
class Case:
    """A layer to check: `make(dtype=...)` builds it; `reference` adds a second, larger input."""

    name: str
    make: Callable[..., keras.layers.Layer]
    reference: tuple[int, int] | None = None  # how much larger, in pixels

    def arrays(self, height: int, width: int, batch: int = 2, seed: int = 0) -> list[np.ndarray]:
        random = np.random.default_rng(seed)
        sizes = [(height, width)]
        if self.reference is not None:
            sizes.append((height + self.reference[0], width + self.reference[1]))
        return [random.normal(size=(batch, *size, CHANNELS)).astype(np.float32) for size in sizes]

    def symbols(self) -> list[keras.KerasTensor]:
        count = 1 if self.reference is None else 2
        return [keras.Input((None, None, CHANNELS)) for _ in range(count)]


def randomized(layer: keras.layers.Layer, seed: int = 0) -> keras.layers.Layer:
    """Gives all weights, moving statistics too, values under which a mistake shows."""
    random = np.random.default_rng(seed)
    for weight in layer.weights:
        low, high = (
            (0.5, 1.5) if "variance" in weight.name or weight.name == "gamma" else (-0.5, 0.5)
        )
        weight.assign(random.uniform(low, high, weight.shape))
    return layer


def check_config(case: Case) -> None:
    """A layer from its configuration, through JSON, with the same weights, is the same layer."""
    layer, arrays = case.make(), case.arrays(9, 8)
    expected = randomized_call(layer, arrays)
    assert arguments_of(type(layer)) <= set(layer.get_config())
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    copy = keras.saving.deserialize_keras_object(config)
    assert type(copy) is type(layer)
    assert copy.get_config() == layer.get_config()
    copy(*arrays)
    copy.set_weights(layer.get_weights())
    np.testing.assert_array_equal(copy(*arrays), expected)


def arguments_of(layer_class: type) -> set[str]:
    """Names of the constructor's arguments, those of the package's base classes too."""
    ours = [c for c in layer_class.__mro__ if c.__module__.startswith("keras_deeplab")]
    own = [vars(c)["__init__"] for c in ours if "__init__" in vars(c)]
    names = {name for init in own for name in inspect.signature(init).parameters}
    return names - {"self", "args", "kwargs"}


def randomized_call(layer: keras.layers.Layer, arrays: list[np.ndarray]) -> np.ndarray:
    layer(*arrays)
    randomized(layer)
    return np.asarray(layer(*arrays))


def check_ways_of_calling(case: Case) -> None:
    """Eager, in a functional model, in a tf.function of dynamic sizes: one result, one shape."""
    layer = case.make()
    symbols = case.symbols()
    model = keras.Model(_pack(symbols), layer(*symbols))
    randomized(layer)
    spec = [tf.TensorSpec([None, None, None, CHANNELS])] * len(symbols)
    traced = tf.function(layer, input_signature=spec)
    for size in ((9, 8), (4, 13)):
        arrays = case.arrays(*size)
        eager = layer(*arrays)
        known = layer(*[keras.Input(x.shape[1:], batch_size=2) for x in arrays])
        assert tuple(known.shape) == tuple(eager.shape)
        assert keras.backend.standardize_dtype(eager.dtype) == known.dtype
        assert len(model.output_shape) == len(eager.shape)
        assert model.output_shape[-1] == eager.shape[-1]
        for output in (traced(*arrays), model(_pack(arrays))):
            np.testing.assert_allclose(output, eager, rtol=1e-4, atol=1e-5)


def check_mixed_precision(case: Case) -> None:
    """Output in bfloat16, close to what float32 gives; weights stay float32."""
    plain, mixed = case.make(), case.make(dtype="mixed_bfloat16")
    arrays = case.arrays(9, 8)
    expected = randomized_call(plain, arrays)
    mixed(*arrays)
    mixed.set_weights(plain.get_weights())
    output = mixed(*arrays)
    assert output.dtype == tf.bfloat16
    assert {weight.dtype for weight in mixed.weights} <= {"float32"}
    output = np.asarray(tf.cast(output, tf.float32))
    assert np.isfinite(output).all()
    assert np.abs(output - expected).max() < 0.05 * np.abs(expected).max()
    assert mixed(*case.symbols()).dtype == "bfloat16"


def user_model(cases: list[Case]) -> keras.Model:
    """All layers side by side: the weights in front of each show whether gradients come through."""
    inputs, outputs = keras.Input((None, None, CHANNELS)), []
    for case in cases:
        x = keras.layers.Conv2D(CHANNELS, 1, name=f"front_{case.name}")(inputs)
        if case.reference is None:
            x = case.make()(x)
        else:
            rows, columns = case.reference
            crop = keras.layers.Cropping2D if rows < 0 else keras.layers.ZeroPadding2D
            x = case.make()(x, crop(((0, abs(rows)), (0, abs(columns))))(inputs))
        if len(x.shape) == 4:
            x = keras.layers.GlobalAveragePooling2D()(x)
        outputs.append(keras.layers.Dense(1)(x))
    return keras.Model(inputs, keras.layers.Add()(outputs))


def check_training_and_files(cases: list[Case], folder: Path) -> None:
    """Fits on images of two sizes, comes back from a .keras file, exports for any size."""
    model, image = user_model(cases), Case("image", keras.layers.Identity)
    model.compile(keras.optimizers.SGD(0.01), "mse")
    fronts = [model.get_layer(f"front_{case.name}") for case in cases]
    before = [front.kernel.numpy() for front in fronts]
    first, second = (
        tf.data.Dataset.from_tensors((*image.arrays(*size), np.ones((2, 1), np.float32)))
        for size in ((9, 8), (4, 13))
    )
    history = model.fit(first.concatenate(second), verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    for front, kernel in zip(fronts, before, strict=True):
        assert np.abs(front.kernel.numpy() - kernel).max() > 0, front.name

    randomized(model)
    model.save(folder / "model.keras")
    loaded = keras.models.load_model(folder / "model.keras")
    assert [type(layer) for layer in loaded.layers] == [type(layer) for layer in model.layers]
    model.export(folder / "saved_model", verbose=False)
    served = tf.saved_model.load(folder / "saved_model")
    for size, batch in (((9, 8), 1), ((4, 13), 3)):
        (x,) = image.arrays(*size, batch=batch)
        expected = model(x)
        np.testing.assert_allclose(loaded(x), expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(served.serve(x), expected, rtol=1e-4, atol=1e-4)


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


def depthwise_as_full(kernel: np.ndarray) -> np.ndarray:
    """The full kernel that does what a depthwise one (multiplier 1) does."""
    channels = kernel.shape[2]
    full = np.zeros((*kernel.shape[:2], channels, channels))
    for channel in range(channels):
        full[:, :, channel, channel] = kernel[:, :, channel, 0]
    return full


def normalized(x: np.ndarray, norm: keras.layers.BatchNormalization) -> np.ndarray:
    """Batch norm at inference, by its formula."""
    gamma, beta, mean, variance = (weight.numpy() for weight in norm.weights)
    return (x - mean) / np.sqrt(variance + norm.epsilon) * gamma + beta


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)
