"""Both optimizers in files, under `fit`, and with what else Keras' optimizers can do."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from optimizers.references import adamw, sgd, small_model, some_gradients, stepped, values_of

from keras_deeplab.optimizers import SGD, AdamW, ParameterGroup, classifier, no_decay
from keras_deeplab.schedules import PolynomialDecay

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(24, 3)).astype("float32")
Y = RANDOM.normal(size=(24, 2)).astype("float32")
GROUPS = [
    ParameterGroup("logits/*", learning_rate=10),
    ParameterGroup("*/bias", learning_rate=2, weight_decay=0),
]
RATES, DECAYS = [1, 2, 10, 20], [1, 0, 1, 0]
MAKERS = {
    "sgd": lambda **options: SGD(0.01, momentum=0.9, weight_decay=0.1, **options),
    "adamw": lambda **options: AdamW(0.01, weight_decay=0.1, **options),
}
REFERENCES = {
    "sgd": lambda *found: sgd(
        *found, RATES, DECAYS, learning_rate=0.01, momentum=0.9, weight_decay=0.1
    ),
    "adamw": lambda *found: adamw(*found, RATES, DECAYS, learning_rate=0.01, weight_decay=0.1),
}
both = pytest.mark.parametrize("which", MAKERS)


def fit(model: keras.Model, epochs: int = 1) -> None:
    model.fit(X, Y, batch_size=8, epochs=epochs, shuffle=False, verbose=0)


def assert_near(found, expected, rtol=2e-5):
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=rtol, atol=2e-6)


def assert_same_bits(found, expected):
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def gradients_in_fit(model: keras.Model, x, y) -> list[np.ndarray]:
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((model(x) - y) ** 2)
    return [g.numpy() for g in tape.gradient(loss, [v.value for v in model.trainable_variables])]


@both
@pytest.mark.parametrize("jit_compile", [False, True])
def test_fit(which, jit_compile):
    model = small_model()
    expected = REFERENCES[which](values_of(model), [gradients_in_fit(model, X, Y)])
    model.compile(MAKERS[which](groups=GROUPS), "mse", jit_compile=jit_compile)
    model.fit(X, Y, batch_size=24, verbose=0)
    assert_near(values_of(model), expected)


def renamed_when_read() -> keras.Model:
    """A model of which all paths are others once it was in a file."""
    layers = keras.layers
    inner = keras.Sequential([layers.Dense(4, "tanh"), layers.Dense(3, "tanh")], name="inner")
    model = keras.Sequential([inner, layers.Dense(2)])
    model.build((None, 3))
    return model


@pytest.mark.parametrize(
    "which, scaled, named",
    [
        ("sgd", False, True),
        ("sgd", True, False),
        ("adamw", False, False),
        ("adamw", True, True),
    ],
)
def test_from_a_file_it_goes_on_bit_for_bit(which, scaled, named, tmp_path):
    model = small_model() if named else renamed_when_read()
    optimizer = MAKERS[which](groups=[*classifier(model), *no_decay(model)])
    if scaled:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, dynamic_growth_steps=4)
    model.compile(optimizer, "mse", run_eagerly=True)
    fit(model)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
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
    options = {"groups": GROUPS, "global_clipnorm": 1.0, "use_ema": True, "name": "mine"}
    optimizer = MAKERS[which](**options)
    optimizer.learning_rate = PolynomialDecay(0.1, 10)
    config = optimizer.get_config()
    for again in (
        type(optimizer).from_config(optimizer.get_config()),
        keras.optimizers.deserialize(keras.optimizers.serialize(optimizer)),
        keras.optimizers.get(keras.optimizers.serialize(optimizer)),
    ):
        assert type(again) is type(optimizer)
        assert again.get_config() == config
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


@both
def test_tensorflow_checkpoint(which, tmp_path):
    pair = []
    for seed in (0, 1):
        model = small_model(seed)
        model.compile(MAKERS[which](groups=GROUPS), "mse", run_eagerly=True)
        fit(model)
        pair.append((model, tf.train.Checkpoint(model=model, optimizer=model.optimizer)))
    path = pair[0][1].save(str(tmp_path / "at"))
    pair[1][1].restore(path).assert_consumed()
    for model, _ in pair:
        fit(model)
    assert_same_bits(values_of(pair[1][0]), values_of(pair[0][0]))


@both
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(which, policy):
    model, optimizer = small_model(dtype=policy), MAKERS[which](groups=GROUPS)
    before = values_of(model)
    if policy == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.compile(optimizer, "mse")
    fit(model)
    exact = small_model()
    exact.compile(MAKERS[which](groups=GROUPS), "mse", run_eagerly=True)
    fit(exact)
    moved = [new - old for new, old in zip(values_of(model), before, strict=True)]
    expected = [new - old for new, old in zip(values_of(exact), before, strict=True)]
    for mine, theirs in zip(moved, expected, strict=True):
        assert mine.dtype == np.float32
        assert np.linalg.norm(mine - theirs) < 0.05 * np.linalg.norm(theirs)


@both
def test_a_step_whose_gradient_overflows_does_not_decay_either(which):
    model = small_model()
    before = values_of(model)
    optimizer = keras.optimizers.LossScaleOptimizer(MAKERS[which](groups=GROUPS))
    model.compile(optimizer, "mse")
    optimizer.build(model.trainable_variables)
    optimizer.dynamic_scale.assign(1e38)
    model.fit(X, 1e6 * Y, batch_size=24, verbose=0)
    assert_same_bits(values_of(model), before)
    optimizer.dynamic_scale.assign(1024.0)
    expected = REFERENCES[which](before, [gradients_in_fit(model, X, Y)])
    model.fit(X, Y, batch_size=24, verbose=0)
    assert_near(values_of(model), expected)


@both
def test_moving_average(which):
    model, plain = small_model(), small_model()
    gradients = some_gradients(model, 5)
    optimizer = MAKERS[which](groups=GROUPS, use_ema=True, ema_momentum=0.8)
    without = MAKERS[which](groups=GROUPS)
    expected = None
    for found in gradients:
        stepped(model, optimizer, [found])
        now = stepped(plain, without, [found])
        pairs = zip(expected or now, now, strict=True)
        expected = [0.8 * old + 0.2 * new for old, new in pairs]
    assert_same_bits(values_of(model), values_of(plain))
    optimizer.finalize_variable_values(model.trainable_variables)
    assert_near(values_of(model), expected)


@both
def test_accumulated_gradients_are_one_step(which):
    model = small_model()
    gradients = some_gradients(model, 6)
    means = [
        [(a + b) / 2 for a, b in zip(*gradients[step : step + 2], strict=True)]
        for step in (0, 2, 4)
    ]
    optimizer = MAKERS[which](groups=GROUPS, gradient_accumulation_steps=2)
    expected = REFERENCES[which](values_of(model), means)
    assert_near(stepped(model, optimizer, gradients), expected)


@both
def test_gradients_are_clipped_before_they_decay(which):
    model = small_model()
    gradients = some_gradients(model, 3)
    norms = [np.sqrt(sum((g.astype("float64") ** 2).sum() for g in found)) for found in gradients]
    assert min(norms) > 1
    clipped = [[g / norm for g in found] for found, norm in zip(gradients, norms, strict=True)]
    expected = REFERENCES[which](values_of(model), clipped)
    optimizer = MAKERS[which](groups=GROUPS, global_clipnorm=1.0)
    assert_near(stepped(model, optimizer, gradients), expected)
