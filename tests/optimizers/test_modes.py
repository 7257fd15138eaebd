"""Both optimizers in files, under `fit` and strategies, and with other options of Keras."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from optimizers.references import adamw as adamw_steps
from optimizers.references import (
    assert_near,
    assert_same_bits,
    small_model,
    some_gradients,
    stepped,
    values_of,
)
from optimizers.references import sgd as sgd_steps

from keras_deeplab.distribution import WholeGradientClipping
from keras_deeplab.optimizers import SGD, AdamW, ParameterGroup, classifier, no_decay
from keras_deeplab.schedules import PolynomialDecay

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(24, 3)).astype("float32")
Y = RANDOM.normal(size=(24, 2)).astype("float32")
GROUPS = [
    ParameterGroup("logits/*", lr_multiplier=10),
    ParameterGroup("*/bias", lr_multiplier=2, weight_decay_multiplier=0),
]
RATES, DECAYS = [1, 2, 10, 20], [1, 0, 1, 0]
both = pytest.mark.parametrize("which", ["sgd", "adamw"])


def made(which, **options):
    if which == "sgd":
        return SGD(0.01, momentum=0.9, weight_decay=0.1, **options)
    return AdamW(0.01, weight_decay=0.1, **options)


def expected_of(which, values, gradients):
    options = {"learning_rate": 0.01, "weight_decay": 0.1}
    if which == "sgd":
        return sgd_steps(values, gradients, RATES, DECAYS, momentum=0.9, **options)
    return adamw_steps(values, gradients, RATES, DECAYS, **options)


def fit(model: keras.Model) -> None:
    model.fit(X, Y, batch_size=8, shuffle=False, verbose=0)


def renamed_when_read() -> keras.Model:
    """A model of which all paths are others once it was in a file."""
    layers = keras.layers
    inner = keras.Sequential([layers.Dense(4, "tanh"), layers.Dense(3, "tanh")], name="inner")
    model = keras.Sequential([inner, layers.Dense(2)])
    model.build((None, 3))
    return model


@pytest.mark.parametrize("which, scaled, named", [("sgd", True, False), ("adamw", False, True)])
def test_from_a_file_it_resumes_bit_for_bit(which, scaled, named, tmp_path):
    model = small_model() if named else renamed_when_read()
    optimizer = made(which, groups=[*classifier(model), *no_decay(model)])
    if scaled:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, dynamic_growth_steps=4)
    model.compile(optimizer, "mse", run_eagerly=True)
    fit(model)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    again.run_eagerly = True
    paths = [[v.path for v in m.trainable_variables] for m in (model, again)]
    assert (paths[0] == paths[1]) is named
    fit(model)
    fit(again)
    assert_same_bits(values_of(again), values_of(model))
    assert_same_bits(again.optimizer.variables, model.optimizer.variables)
    mine = getattr(again.optimizer, "inner_optimizer", again.optimizer)
    assert type(mine) is {"sgd": SGD, "adamw": AdamW}[which]
    assert again.optimizer.get_config() == model.optimizer.get_config()


@both
def test_configuration(which):
    optimizer = made(which, groups=GROUPS, global_clipnorm=1.0, use_ema=True, name="mine")
    optimizer.learning_rate = PolynomialDecay(0.1, 10)
    for again in (
        type(optimizer).from_config(optimizer.get_config()),
        keras.optimizers.get(keras.optimizers.serialize(optimizer)),
    ):
        assert type(again) is type(optimizer)
        assert again.get_config() == optimizer.get_config()
        assert again.groups == tuple(GROUPS)


def test_a_configuration_for_another_model_goes_by_its_groups():
    model = small_model()
    optimizer = SGD(0.1, groups=GROUPS)
    optimizer.build(model.trainable_variables)
    inputs = keras.Input((5,))
    other = keras.Model(inputs, keras.layers.Dense(2, name="logits")(inputs))
    again = SGD.from_config(optimizer.get_config())
    again.build(other.trainable_variables)
    multipliers = [pair for _, *pair in again.get_config()["multipliers"]]
    assert multipliers == [[10, 1], [20, 0]]


@pytest.mark.slow
def test_mixed_precision_in_a_compiled_fit():
    model = small_model(dtype="mixed_float16")
    before = values_of(model)
    model.compile(keras.optimizers.LossScaleOptimizer(made("adamw", groups=GROUPS)), "mse")
    fit(model)
    exact = small_model()
    exact.compile(made("adamw", groups=GROUPS), "mse", run_eagerly=True)
    fit(exact)
    for start, mine, theirs in zip(before, values_of(model), values_of(exact), strict=True):
        assert mine.dtype == np.float32
        assert np.linalg.norm(mine - theirs) < 0.05 * np.linalg.norm(theirs - start)


@pytest.mark.parametrize("which, jit_compile", [("sgd", True), ("adamw", False)])
def test_fit_and_a_step_whose_gradient_overflows(which, jit_compile):
    """That step does not decay either."""
    model = small_model()
    before = values_of(model)
    optimizer = keras.optimizers.LossScaleOptimizer(made(which, groups=GROUPS))
    model.compile(optimizer, "mse", jit_compile=jit_compile)
    optimizer.build(model.trainable_variables)
    optimizer.dynamic_scale.assign(1e38)
    model.fit(X, 1e6 * Y, batch_size=24, verbose=0)
    assert_same_bits(values_of(model), before)
    optimizer.dynamic_scale.assign(1024.0)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((model(X) - Y) ** 2)
    gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
    expected = expected_of(which, before, [[g.numpy() for g in gradients]])
    model.fit(X, Y, batch_size=24, verbose=0)
    assert_near(values_of(model), expected)


@both
def test_accumulated_gradients_are_one_step_clipped_before_it_decays(which):
    model = small_model()
    gradients = some_gradients(model, 6)
    steps = []
    for first, second in zip(gradients[::2], gradients[1::2], strict=True):
        mean = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
        norm = np.sqrt(sum((g.astype("float64") ** 2).sum() for g in mean))
        assert norm > 1
        steps.append([g / norm for g in mean])
    options = {"gradient_accumulation_steps": 2, "global_clipnorm": 1.0}
    expected = expected_of(which, values_of(model), steps)
    assert_near(stepped(model, made(which, groups=GROUPS, **options), gradients), expected)


@pytest.mark.slow
def test_two_replicas_end_where_one_does(mirrored):
    """With a moving average, scaled loss and clipped gradients.

    Without accumulated gradients, with which Keras' own optimizers fail under MirroredStrategy too.
    """
    ends = []
    for strategy in (mirrored, tf.distribute.get_strategy()):
        batches = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
        with strategy.scope():
            model = small_model()
            options = {"global_clipnorm": 5.0, "use_ema": True, "ema_momentum": 0.5}
            optimizer = made("adamw", groups=GROUPS, **options)
            model.compile(keras.optimizers.LossScaleOptimizer(optimizer), "mse")
        model.fit(batches, epochs=2, shuffle=False, verbose=0)
        ends.append(values_of(model))
    for two, one, start in zip(*ends, values_of(small_model()), strict=True):
        np.testing.assert_allclose(two, one, atol=1e-5)
        assert np.abs(one - start).max() > 5e-3


class Clipped(WholeGradientClipping, keras.optimizers.SGD):
    """Keras' optimizer with the mixin."""


@pytest.mark.parametrize(
    "clip, expected",
    [
        ({}, [3, 1]),
        ({"global_clipnorm": 2.0}, [6 / np.sqrt(10), 2 / np.sqrt(10)]),
        ({"clipnorm": 2.0}, [6 / np.sqrt(10), 2 / np.sqrt(10)]),
        ({"clipvalue": 2.0}, [2, 1]),
    ],
)
def test_the_gradient_of_the_whole_batch_is_clipped(mirrored, clip, expected):
    """Two parts of norm 5 and 3 in different directions; Keras' own clips each to 2."""
    parts = np.float32([[3, 4], [0, -3]])
    with mirrored.scope():
        variables = [keras.Variable(np.zeros(2, "float32")), keras.Variable(1.0)]
        optimizer = Clipped(1.0, **clip)
        optimizer.build(variables)

    def of_replica():
        number = tf.distribute.get_replica_context().replica_id_in_sync_group
        part = tf.constant(parts)[number]
        optimizer.apply_gradients([(part, variables[0]), (None, variables[1])])

    tf.function(lambda: mirrored.run(of_replica))()
    np.testing.assert_allclose(-variables[0].numpy(), expected, rtol=1e-6)
