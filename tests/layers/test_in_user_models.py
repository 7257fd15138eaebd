"""ASPP and spatial pyramid pooling in a functional model of the user's own."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import keras_deeplab


def two_sizes(make) -> tf.data.Dataset:
    """Batches of 40x32 and of 25x47 pixels in turn."""
    first, second = (
        tf.data.Dataset.from_tensors(make(np.random.default_rng(seed), height, width))
        for seed, (height, width) in enumerate([(40, 32), (25, 47)])
    )
    return first.concatenate(second)


def fit_and_export(model: keras.Model, data: tf.data.Dataset, loss, folder: Path) -> None:
    keras.utils.set_random_seed(0)
    model.compile(keras.optimizers.Adam(0.01), loss)
    history = model.fit(data.repeat(10), epochs=3, steps_per_epoch=10, verbose=0).history["loss"]
    assert history[-1] < 0.5 * history[0]
    model.export(folder / "saved_model", verbose=False)
    served = tf.saved_model.load(folder / "saved_model")
    for size in ((40, 32), (33, 61), (9, 8)):
        x = np.random.default_rng(0).normal(size=(3, *size, 3)).astype("float32")
        np.testing.assert_allclose(served.serve(x), model(x, training=False), rtol=1e-3, atol=1e-4)


def test_aspp(tmp_path: Path):
    """Which pixels are brighter than their image's mean: needs the pixel and the whole image."""

    def make(random, height, width):
        light = random.normal(size=(4, 1, 1, 1))
        cells = random.normal(size=(4, -(-height // 8), -(-width // 8), 1))
        x = np.kron(cells, np.ones((1, 8, 8, 3)))[:, :height, :width]
        y = (x[:, ::4, ::4, 0] > 0).astype("int32")
        return (x + light).astype("float32"), y

    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(8, 3, strides=4, padding="same", activation="relu")(inputs)
    x = keras_deeplab.layers.ASPP(16, rates=(1, 2, 3))(x)
    model = keras.Model(inputs, keras.layers.Conv2D(2, 1)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    fit_and_export(model, two_sizes(make), loss, tmp_path)


def test_spatial_pyramid_pooling_then_dense(tmp_path: Path):
    """In which quarter of the image the bright spot is: a global pooling could not tell."""

    def make(random, height, width):
        x = random.normal(0, 0.1, size=(16, height, width, 3))
        y = np.arange(16) % 4
        for index, quarter in enumerate(y):
            row, column = quarter // 2 * height // 2, quarter % 2 * width // 2
            row, column = row + random.integers(2, 8), column + random.integers(2, 8)
            x[index, row : row + 4, column : column + 4] += 2
        return x.astype("float32"), y

    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 3, padding="same", activation="relu")(inputs)
    x = keras_deeplab.layers.SpatialPyramidPooling2D((2, 1))(x)
    model = keras.Model(inputs, keras.layers.Dense(4)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    data = two_sizes(make)
    fit_and_export(model, data, loss, tmp_path)
    for x, y in data:
        assert np.mean(np.argmax(model(x), axis=-1) == y) > 0.9
