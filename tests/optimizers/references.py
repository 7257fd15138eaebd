"""Both optimizers in plain numpy, and a small model to run them on."""

from __future__ import annotations

import keras
import numpy as np


def sgd(values, gradients, rates, decays, *, learning_rate, momentum, weight_decay, nesterov=False):
    """Values after a step for each list of gradients: L2 decay in front of the momentum."""
    values = [np.asarray(value, np.float64) for value in values]
    velocities = [np.zeros_like(value) for value in values]
    for step, found in enumerate(gradients):
        base = learning_rate(step) if callable(learning_rate) else learning_rate
        for i, gradient in enumerate(found):
            gradient = gradient + weight_decay * decays[i] * values[i]
            rate = base * rates[i]
            velocities[i] = momentum * velocities[i] - rate * gradient
            ahead = momentum * velocities[i] - rate * gradient
            values[i] = values[i] + (ahead if nesterov else velocities[i])
    return values


def adamw(values, gradients, rates, decays, *, learning_rate, weight_decay, beta=(0.9, 0.999)):
    """Values after a step for each list of gradients: the decay beside Adam's moments."""
    values = [np.asarray(value, np.float64) for value in values]
    first = [np.zeros_like(value) for value in values]
    second = [np.zeros_like(value) for value in values]
    for step, found in enumerate(gradients):
        base = learning_rate(step) if callable(learning_rate) else learning_rate
        for i, gradient in enumerate(found):
            rate = base * rates[i]
            first[i] = beta[0] * first[i] + (1 - beta[0]) * gradient
            second[i] = beta[1] * second[i] + (1 - beta[1]) * gradient**2
            correction = np.sqrt(1 - beta[1] ** (step + 1)) / (1 - beta[0] ** (step + 1))
            values[i] = values[i] - rate * weight_decay * decays[i] * values[i]
            values[i] = values[i] - rate * correction * first[i] / (np.sqrt(second[i]) + 1e-7)
    return values


def small_model(seed=0, **options) -> keras.Model:
    """Two dense layers: the paths are a/kernel, a/bias, logits/kernel and logits/bias."""
    layers = keras.layers
    inputs = keras.Input((3,))
    x = layers.Dense(4, "tanh", name="a", **options)(inputs)
    model = keras.Model(inputs, layers.Dense(2, name="logits", **options)(x))
    random = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign(random.normal(size=variable.shape))
    return model


def some_gradients(model: keras.Model, steps: int, seed=1) -> list[list[np.ndarray]]:
    """Random gradients for each step."""
    random = np.random.default_rng(seed)
    shapes = [tuple(variable.shape) for variable in model.trainable_variables]
    return [[random.normal(size=s).astype("float32") for s in shapes] for _ in range(steps)]


def stepped(model: keras.Model, optimizer, gradients) -> list[np.ndarray]:
    """The model's trainable values after these steps."""
    for found in gradients:
        optimizer.apply([keras.ops.convert_to_tensor(g) for g in found], model.trainable_variables)
    return values_of(model)


def values_of(model: keras.Model) -> list[np.ndarray]:
    return [variable.numpy() for variable in model.trainable_variables]


def assert_near(found, expected):
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=2e-5, atol=2e-6)


def assert_same_bits(found, expected):
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)
