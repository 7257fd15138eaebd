"""The package's batch norm against Keras' own, and where it differs on purpose."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from layer_checks import normalized, randomized

from keras_deeplab.layers import BatchNormalization

CHANNELS = 5


def values(*shape: int, seed: int = 0) -> tf.Tensor:
    """Far from the origin, as behind a convolution with bias: rounding shows."""
    random = np.random.default_rng(seed)
    return tf.constant(random.normal(3, 2, (*shape, CHANNELS)).astype(np.float32))


def pair(x: tf.Tensor, **settings: Any) -> tuple[BatchNormalization, keras.layers.Layer]:
    """Our layer and Keras' with the same random weights."""
    layers = BatchNormalization(**settings), keras.layers.BatchNormalization(**settings)
    for layer in layers:
        layer.build(x.shape)
    randomized(layers[1])
    layers[0].set_weights(layers[1].get_weights())
    return layers


def answers(
    layer: keras.layers.Layer, x: tf.Tensor, training: bool, run: Callable = lambda f: f
) -> list[np.ndarray]:
    """Outputs, gradients of input and trained weights, and the moving statistics behind a call."""

    def step(x: tf.Tensor) -> list[Any]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=training)
            # No gradient reaches the input through a sum or a sum of squares of what is normalised.
            loss = tf.reduce_sum(tf.sin(tf.cast(y, tf.float32)))
        trained = [w.value for w in layer.trainable_variables]
        return [y, *tape.gradient(loss, [x, *trained])]

    found = run(step)(x)
    found += [layer.moving_mean, layer.moving_variance]
    return [np.asarray(tf.cast(part, tf.float32)) for part in found]


def assert_same(ours: list, others: list, tolerance: float) -> None:
    assert len(ours) == len(others)
    for mine, other in zip(ours, others, strict=True):
        # Over two values gradients cancel to less than their own rounding: all else is about 1.
        np.testing.assert_allclose(mine, other, atol=tolerance * max(1, np.abs(other).max()))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        {"momentum": 0.7, "epsilon": 1e-5},
        {"center": False},
        {"scale": False, "axis": 3},
        {"trainable": False},
    ],
    ids=str,
)
def test_values_gradients_and_statistics_are_keras_own(settings, training):
    x = values(2, 3, 4)
    ours, keras_own = pair(x, **settings)
    before = ours.get_weights()
    assert_same(answers(ours, x, training), answers(keras_own, x, training), 1e-5)
    moved = np.abs(np.subtract(ours.moving_variance, before[-1])).max() > 1e-3
    assert moved == (training and ours.trainable)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("policy, tolerance", [("mixed_bfloat16", 1e-2), ("mixed_float16", 2e-3)])
def test_half_precision(policy, tolerance, training):
    x = tf.cast(values(2, 6, 5), policy.removeprefix("mixed_"))
    ours, keras_own = pair(x, dtype=policy)
    assert ours(x, training=training).dtype == x.dtype
    ours.set_weights(keras_own.get_weights())
    assert_same(answers(ours, x, training), answers(keras_own, x, training), tolerance)
    assert {weight.dtype for weight in ours.weights} == {"float32"}
    # The statistics are no less exact than Keras', which computes them in float32.
    for mine, other in zip(ours.weights[2:], keras_own.weights[2:], strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5)


def test_xla_compiles_it():
    x = values(2, 3, 4)
    ours, keras_own = pair(x)
    compiled = answers(ours, x, True, lambda f: tf.function(f, jit_compile=True))
    assert_same(compiled, answers(keras_own, x, True), 1e-5)


def operations(layer: keras.layers.Layer, *shape: int | None, training: bool = True) -> set[str]:
    spec = tf.TensorSpec((*shape, CHANNELS))
    traced = tf.function(lambda x: layer(x, training=training)).get_concrete_function(spec)
    graph = traced.graph.as_graph_def()
    inner = [node for function in graph.library.function for node in function.node_def]
    return {node.op for node in [*graph.node, *inner]}


@pytest.mark.parametrize(
    "shape, is_conditional",
    [
        ((8, None, None), False),
        ((None, 1, 2), False),
        ((1, 1, 1), False),
        ((None, 1, 1), True),
        ((1, None, 1), True),
    ],
)
def test_a_condition_only_where_the_shape_leaves_it_open(shape, is_conditional):
    ours, _ = pair(values(1, 1, 1))
    found = operations(ours, *shape)
    assert "FusedBatchNormV3" in found
    assert bool(found & {"If", "StatelessIf"}) == is_conditional
    assert not operations(ours, *shape, training=False) & {"If", "StatelessIf", "Rsqrt"}


def traced_for(*shape: int | None) -> Callable:
    """Traces a step for a shape of which not all is known."""
    spec = tf.TensorSpec((*shape, CHANNELS))
    return lambda f: tf.function(f, input_signature=[spec])


@pytest.mark.parametrize(
    "run", [lambda f: f, tf.function, traced_for(None, 1, 1), traced_for(None, None, None)]
)
def test_a_single_value_is_normalised_by_the_moving_statistics(run):
    x = values(1, 1, 1)
    ours, keras_own = pair(x)
    before = ours.get_weights()
    found = answers(ours, x, True, run)
    np.testing.assert_array_equal(found[-2:], before[2:])
    np.testing.assert_allclose(found[0], normalized(x.numpy(), ours), rtol=1e-5, atol=1e-5)
    assert_same(found, answers(keras_own, x, False), 1e-5)
    # What it is there for: Keras answers beta, whatever the image.
    np.testing.assert_allclose(keras_own(x, training=True)[0, 0, 0], ours.beta, atol=1e-5)


@pytest.mark.parametrize(
    "shape, known", [((2, 1, 1), (None, 1, 1)), ((1, 1, 2), 3 * (None,)), ((3, 2, 2), 3 * (None,))]
)
def test_two_values_are_a_batch(shape, known):
    x = values(*shape)
    # The statistics of this batch alone. TensorFlow's variance of 2 values is twice as large.
    ours, keras_own = pair(x, momentum=0.0)
    assert_same(answers(ours, x, True, traced_for(*known)), answers(keras_own, x, True), 1e-5)


@pytest.mark.parametrize("shape", [(None, None, None), (None, 2, 2), (None, 1, 1)])
def test_an_empty_batch_moves_nothing(shape):
    ours, _ = pair(values(1, 2, 2))
    before = ours.get_weights()
    size = [n or 2 for n in shape[1:]]
    found = answers(ours, values(0, *size), True, traced_for(*shape))
    np.testing.assert_array_equal(found[-2:], before[2:])
    assert all(np.isfinite(part).all() for part in found)


@pytest.mark.parametrize(
    "shape, settings",
    [
        ((2, 3), {}),
        ((2, 3, 2, 2), {}),
        ((2, 3, 4), {"renorm": True, "renorm_clipping": {"rmax": 2.0}}),
        ((2, 3, 4), {"dtype": "float64"}),
    ],
    ids=str,
)
def test_all_else_is_left_to_keras(shape, settings):
    x = tf.cast(values(*shape), settings.get("dtype", "float32"))
    ours, keras_own = pair(x, **settings)
    for training in (True, False):
        assert_same(answers(ours, x, training), answers(keras_own, x, training), 1e-5)


def test_another_axis_and_masks_are_left_to_keras():
    x = values(2, 3, 4)
    ours, keras_own = pair(x, axis=1)
    np.testing.assert_allclose(ours(x, training=True), keras_own(x, training=True), atol=1e-6)
    single = values(1)  # and a single value is safe there too
    ours, keras_own = pair(single)
    assert_same(answers(ours, single, True), answers(keras_own, single, False), 1e-5)
    ours, keras_own = pair(x)
    mask = np.random.default_rng(0).random((2, 3, 4)) > 0.4
    expected = keras_own(x, training=True, mask=mask)
    np.testing.assert_allclose(ours(x, training=True, mask=mask), expected, atol=1e-5)
    assert np.abs(expected - ours(x, training=True)).max() > 0.01
    np.testing.assert_allclose(ours.moving_mean, keras_own.moving_mean, atol=0.1)


def test_frozen_statistics():
    x = values(4, 3, 3)
    ours, keras_own = pair(x)
    ours.frozen_statistics = True
    before = ours.get_weights()
    assert len(ours.trainable_weights) == 2
    # As inference, but with gradients that train gamma and beta.
    assert_same(answers(ours, x, True), answers(keras_own, x, False), 1e-5)
    np.testing.assert_array_equal(ours.get_weights()[2:], before[2:])
    copy = BatchNormalization.from_config(ours.get_config())
    assert copy.frozen_statistics is True


def test_it_takes_keras_own_configuration():
    keras_own = keras.layers.BatchNormalization(momentum=0.8, scale=False, name="norm")
    ours = BatchNormalization.from_config(keras_own.get_config())
    assert ours.get_config() == {**keras_own.get_config(), "frozen_statistics": False}


@pytest.mark.slow
def test_across_replicas(tmp_path: Path):
    """Two logical devices: synchronised statistics are the whole batch's, own ones are not."""
    script = Path(__file__).with_name("batch_norm_replicas.py")
    paths = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": paths, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "same"
