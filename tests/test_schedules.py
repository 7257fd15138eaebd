from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_deeplab.schedules import PolynomialDecay


def reference(step, initial, total, power=0.9, warmup=0, start=0.0, end=0.0):
    if step < warmup:
        return start + (initial - start) * step / warmup
    progress = min((step - warmup) / (total - warmup), 1.0)
    return end + (initial - end) * (1 - progress) ** power


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"power": 2.0},
        {"warmup_steps": 7, "warmup_from": 1e-4},
        {"warmup_steps": 1, "end_learning_rate": 1e-3},
    ],
)
def test_equals_the_formula(arguments):
    schedule = PolynomialDecay(0.007, 100, **arguments)
    names = {"warmup_steps": "warmup", "warmup_from": "start", "end_learning_rate": "end"}
    given = {names.get(name, name): value for name, value in arguments.items()}
    steps = [0, 1, 6, 7, 8, 50, 99, 100, 101, 10_000]
    expected = [reference(step, 0.007, 100, **given) for step in steps]
    np.testing.assert_allclose([schedule(step) for step in steps], expected, rtol=1e-5, atol=1e-9)
    compiled = tf.function(schedule, jit_compile=True)
    result = [compiled(tf.constant(step, tf.int64)) for step in steps]
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    "argument, value",
    [
        ("initial_learning_rate", 0.0),
        ("total_steps", 0),
        ("power", 0.0),
        ("warmup_steps", 10),
        ("warmup_steps", -1),
        ("warmup_from", -1e-3),
        ("end_learning_rate", -1e-3),
    ],
)
def test_arguments_are_checked(argument, value):
    with pytest.raises(ValueError, match=f"`{argument}` must be .*Received: {argument}={value}"):
        PolynomialDecay(**{"initial_learning_rate": 0.1, "total_steps": 10, argument: value})


def test_serialisation():
    schedule = PolynomialDecay(0.1, 50, 0.8, 5, 0.01, 0.001, "poly")
    serialise = keras.optimizers.schedules.serialize
    again = keras.optimizers.schedules.deserialize(serialise(schedule))
    assert type(again) is PolynomialDecay
    assert again.get_config() == schedule.get_config()


def test_a_saved_model_resumes_along_the_schedule(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    schedule = PolynomialDecay(0.1, 8, warmup_steps=2)
    model.compile(keras.optimizers.SGD(schedule), "mse", run_eagerly=True)
    x, y = np.ones((4, 2), np.float32), np.ones((4, 1), np.float32)
    model.fit(x, y, batch_size=1, verbose=0)
    expected = reference(4, 0.1, 8, warmup=2)
    np.testing.assert_allclose(model.optimizer.learning_rate, expected, rtol=1e-5)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(again.optimizer.learning_rate, expected, rtol=1e-5)
    again.fit(x, y, batch_size=1, verbose=0)
    assert float(again.optimizer.learning_rate) == 0
