"""Steps of both optimizers against numpy, and against Keras' own where they mean the same."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from optimizers.references import (
    adamw,
    assert_near,
    assert_same_bits,
    sgd,
    small_model,
    some_gradients,
    stepped,
    values_of,
)

from keras_deeplab.optimizers import SGD, AdamW, ParameterGroup
from keras_deeplab.schedules import PolynomialDecay

GROUPS = [
    ParameterGroup("logits/*", lr_multiplier=10),
    ParameterGroup("*/bias", lr_multiplier=2, weight_decay_multiplier=0),
    ParameterGroup("logits/kernel", weight_decay_multiplier=3),
    ParameterGroup("a/kernel", lr_multiplier=0.5, weight_decay_multiplier=0.25),
]
RATES, DECAYS = [0.5, 2, 10, 20], [0.25, 0, 3, 0]
ONES = [ParameterGroup("*"), ParameterGroup(("a/kernel", "*/bias"), 1, 1)]
SCHEDULE = PolynomialDecay(0.02, 6, warmup_steps=2)


@pytest.mark.parametrize("rate", [0.01, SCHEDULE], ids=["constant", "schedule"])
@pytest.mark.parametrize(
    "make, reference, options",
    [
        (SGD, sgd, {"momentum": 0.0, "weight_decay": 0.05}),
        (SGD, sgd, {"momentum": 0.9, "weight_decay": 0.0}),
        (SGD, sgd, {"momentum": 0.9, "weight_decay": 0.05}),
        (SGD, sgd, {"momentum": 0.9, "weight_decay": 0.05, "nesterov": True}),
        (AdamW, adamw, {"weight_decay": 0.0}),
        (AdamW, adamw, {"weight_decay": 0.3}),
    ],
)
def test_steps_are_the_formula(make, reference, options, rate):
    model = small_model()
    gradients = some_gradients(model, 6)
    known = rate if rate is not SCHEDULE else [float(SCHEDULE(n)) for n in range(6)].__getitem__
    expected = reference(values_of(model), gradients, RATES, DECAYS, learning_rate=known, **options)
    optimizer = make(learning_rate=rate, groups=GROUPS, **options)
    assert_near(stepped(model, optimizer, gradients), expected)


@pytest.mark.parametrize("groups", [(), ONES], ids=["none", "ones"])
@pytest.mark.parametrize(
    "mine, theirs, options",
    [
        (SGD, keras.optimizers.SGD, {"momentum": 0.9, "nesterov": True}),
        (AdamW, keras.optimizers.AdamW, {"weight_decay": 0.1, "amsgrad": True}),
    ],
)
def test_without_multipliers_it_is_keras_to_the_last_bit(groups, mine, theirs, options):
    gradients = some_gradients(small_model(), 6)
    expected = stepped(small_model(), theirs(0.013, **options), gradients)
    optimizer = mine(0.013, groups=groups, **options)
    assert_same_bits(stepped(small_model(), optimizer, gradients), expected)


@pytest.mark.parametrize("make", [SGD, AdamW])
def test_zero_freezes_whatever_the_gradient_is(make):
    model = small_model()
    before, gradients = values_of(model), some_gradients(model, 4)
    for found in gradients:
        found[2][0] = [np.inf, np.nan]
    optimizer = make(0.1, weight_decay=0.1, groups=[ParameterGroup("logits/*", lr_multiplier=0)])
    after = stepped(model, optimizer, gradients)
    assert_same_bits(after[2:], before[2:])
    assert all((old != new).all() for old, new in zip(before[:2], after[:2], strict=True))


def test_keras_own_exclusion_holds_as_well():
    model = small_model()
    gradients, options = some_gradients(model, 4), {"learning_rate": 0.01, "weight_decay": 0.3}
    expected = sgd(values_of(model), gradients, RATES, [0, 0, 3, 0], momentum=0.9, **options)
    optimizer = SGD(groups=GROUPS, momentum=0.9, **options)
    optimizer.exclude_from_weight_decay(var_list=[model.get_layer("a").kernel])
    assert_near(stepped(model, optimizer, gradients), expected)


def test_tensorflow_variables_are_known_by_name():
    variables = [tf.Variable([1.0, 2.0], name=name) for name in ("slow", "fast")]
    optimizer = SGD(0.1, groups=[ParameterGroup("fast*", lr_multiplier=3)])
    optimizer.apply_gradients([(tf.constant([1.0, -1.0]), v) for v in variables])
    slow, fast = (variable.numpy() - [1, 2] for variable in variables)
    np.testing.assert_allclose(fast, 3 * slow, rtol=1e-5)


def test_rows_of_an_embedding():
    table = keras.Variable(np.random.default_rng(0).normal(size=(4, 3)), name="table")
    before = table.numpy()
    optimizer = SGD(0.1, weight_decay=0.5, groups=[ParameterGroup("table", 2)])
    gradient = tf.IndexedSlices(tf.ones((2, 3)), tf.constant([1, 2]), tf.constant([4, 3]))
    optimizer.apply([gradient], [table])
    rows = np.array([[0], [1], [1], [0]])
    np.testing.assert_allclose(table, before - 0.2 * (rows + 0.5 * before), rtol=1e-5)
