"""Weights under which a network's output lives, so that comparing two networks means something."""

from __future__ import annotations

import keras
import numpy as np

from keras_deeplab.graph.network import all_layers, leaf_layers


def image(height: int, width: int, batch: int = 1, channels: int = 3, seed: int = 0) -> np.ndarray:
    """A picture with structure at all scales, values 0..255."""
    random = np.random.default_rng(seed)
    total = np.zeros((batch, height, width, channels), np.float32)
    for cell in (1, 4, 16, 48):
        small = random.normal(size=(batch, height // cell + 2, width // cell + 2, channels))
        total += np.kron(small, np.ones((1, cell, cell, 1)))[:, :height, :width]
    return np.clip(128 + 40 * total, 0, 255).astype(np.float32)


def scaled(height: int, width: int, batch: int = 1) -> np.ndarray:
    """The picture about zero, as a network without its own scaling takes it."""
    return (image(height, width, batch) - 128) / 64


def calibrate(
    model: keras.Model, x: np.ndarray, seed: int = 0, composites: bool = False
) -> keras.Model:
    """Random gamma, beta, biases and layer scales; batch-norm statistics from one batch.

    With `composites` also of the norms inside composite layers; not where one of them follows image
    pooling, whose statistics over a small batch magnify any rounding.
    """
    random = np.random.default_rng(seed)
    norms = []
    for layer in leaf_layers(model).values():
        for weight in layer.weights:
            if weight.name in {"bias", "beta"}:
                weight.assign(random.normal(0, 0.1, weight.shape))
            if weight.name == "gamma":
                ones = type(layer).__name__ != "LayerScale"
                weight.assign(
                    random.uniform(0.7, 1.3, weight.shape)
                    if ones
                    else random.uniform(0.3, 0.6, weight.shape)
                )
    for layer in (all_layers if composites else leaf_layers)(model).values():
        if isinstance(layer, keras.layers.BatchNormalization):
            norms.append((layer, layer.momentum))
            layer.momentum = 0.0
    model(x, training=True)
    for layer, momentum in norms:
        layer.momentum = momentum
    assert np.std(model(x, training=False)) > 1e-2, "the output must live"
    return model
