from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_deeplab.schedules import PolynomialDecay


def reference(step, initial, total, power=0.9, warmup=0, end=0.0):
    if step < warmup:
        return initial * step / warmup
    progress = min((step - warmup) / (total - warmup), 1.0)
    return end + (initial - end) * (1 - progress) ** power


@pytest.mark.parametrize(
    "arguments",
    [{}, {"power": 2.0}, {"warmup_steps": 7}, {"warmup_steps": 1, "end_learning_rate": 1e-3}],
)
def test_equals_the_formula(arguments):
    schedule = PolynomialDecay(0.007, 100, **arguments)
    names = {"warmup_steps": "warmup", "end_learning_rate": "end"}
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
        ("end_learning_rate", -1e-3),
    ],
)
def test_arguments_are_checked(argument, value):
    with pytest.raises(ValueError, match=f"`{argument}` must be .*Received: {argument}={value}"):
        PolynomialDecay(**{"initial_learning_rate": 0.1, "total_steps": 10, argument: value})


def test_serialisation():
    schedule = PolynomialDecay(0.1, 50, 0.8, 5, 0.001, "poly")
    serialise = keras.optimizers.schedules.serialize
    again = keras.optimizers.schedules.deserialize(serialise(schedule))
    assert type(again) is PolynomialDecay
    assert again.get_config() == schedule.get_config()
