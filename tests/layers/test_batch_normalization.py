"""The package's batch norm against Keras' own, and where it differs on purpose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from layer_checks import normalized, randomized

from keras_deeplab.layers import BatchNormalization, batch_norm, dilated_conv
from keras_deeplab.layers.dilated_conv import inference_graph

CHANNELS = 5
MODES = pytest.mark.parametrize("training, onednn", [(True, True), (False, False), (False, True)])


def values(*shape: int) -> tf.Tensor:
    """Far from the origin, as behind a convolution with bias: rounding shows."""
    random = np.random.default_rng(0)
    return tf.constant(random.normal(3, 2, (*shape, CHANNELS)).astype(np.float32))


def pair(x: tf.Tensor, **settings: Any) -> tuple[BatchNormalization, keras.layers.Layer]:
    """Our layer and Keras' with the same random weights."""
    layers = BatchNormalization(**settings), keras.layers.BatchNormalization(**settings)
    for layer in layers:
        layer.build(x.shape)
    randomized(layers[1])
    layers[0].set_weights(layers[1].get_weights())
    return layers


def results(
    layer: keras.layers.Layer, x: tf.Tensor, training: bool, run: Callable = lambda f: f
) -> list[np.ndarray]:
    """Outputs, gradients of input and trained weights, and the moving statistics after a call."""

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


def assert_same(ours: list, others: list, tolerance: float = 1e-5) -> None:
    assert len(ours) == len(others)
    for mine, other in zip(ours, others, strict=True):
        # Over two values gradients cancel to less than their own rounding: all else is about 1.
        np.testing.assert_allclose(mine, other, atol=tolerance * max(1, np.abs(other).max()))


@MODES
@pytest.mark.parametrize(
    "shape, settings",
    [
        ((2, 3, 4), {"momentum": 0.7, "epsilon": 1e-5}),
        ((2, 3, 4), {"center": False}),
        ((2, 3, 4), {"scale": False, "axis": 3}),
        ((2, 3, 4), {"trainable": False}),
        # What is left to Keras.
        ((2, 3, 4), {"axis": 1}),
        ((2, 3), {}),
        ((2, 3, 2, 2), {}),
        ((2, 3, 4), {"renorm": True, "renorm_clipping": {"rmax": 2.0}}),
        ((2, 3, 4), {"dtype": "float64"}),
    ],
    ids=str,
)
def test_values_gradients_and_statistics_are_keras_own(
    shape, settings, training, onednn, monkeypatch
):
    monkeypatch.setattr(batch_norm, "is_onednn_graph", lambda: onednn)
    x = tf.cast(values(*shape), settings.get("dtype", "float32"))
    ours, keras_own = pair(x, **settings)
    before = ours.get_weights()
    assert_same(results(ours, x, training), results(keras_own, x, training))
    moved = np.abs(np.subtract(ours.moving_variance, before[-1])).max() > 1e-3
    assert moved or not (training and ours.trainable)


@MODES
@pytest.mark.parametrize("policy, tolerance", [("mixed_bfloat16", 1e-2), ("mixed_float16", 2e-3)])
def test_half_precision(policy, tolerance, training, onednn, monkeypatch):
    monkeypatch.setattr(batch_norm, "is_onednn_graph", lambda: onednn)
    x = tf.cast(values(2, 6, 5), policy.removeprefix("mixed_"))
    ours, keras_own = pair(x, dtype=policy)
    assert ours(x).dtype == x.dtype
    assert_same(results(ours, x, training), results(keras_own, x, training), tolerance)
    assert {weight.dtype for weight in ours.weights} == {"float32"}
    # The statistics are no less exact than Keras', which computes them in float32.
    for mine, other in zip(ours.weights[2:], keras_own.weights[2:], strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5)


def test_xla_compiles_it():
    x = values(2, 3, 4)
    ours, keras_own = pair(x)
    compiled = results(ours, x, True, lambda f: tf.function(f, jit_compile=True))
    assert_same(compiled, results(keras_own, x, True))


def operations(layer: keras.layers.Layer, *shape: int | None, training: bool = True) -> set[str]:
    spec = tf.TensorSpec((*shape, CHANNELS))
    traced = tf.function(lambda x: layer(x, training=training)).get_concrete_function(spec)
    graph = traced.graph.as_graph_def()
    inner = [node for function in graph.library.function for node in function.node_def]
    return {node.op for node in [*graph.node, *inner]}


@pytest.mark.parametrize("onednn", [False, True])
def test_not_fused_where_onednn_would_join_it_to_a_convolution(onednn, monkeypatch):
    """It takes over twenty times as long without AVX-512, so this is not measured here."""
    layer = BatchNormalization()
    layer.build((None, None, None, CHANNELS))
    monkeypatch.setattr(dilated_conv, "_runs", lambda *_: onednn)
    sizes = (None, None, None)
    assert ("FusedBatchNormV3" in operations(layer, *sizes, training=False)) != onednn
    layer.frozen_statistics = True  # whose gradients need the convolution's own output
    assert "FusedBatchNormV3" in operations(layer, *sizes)
    with inference_graph("here"):  # where the convolution before it takes it in
        assert "FusedBatchNormV3" in operations(layer, *sizes, training=False)


@pytest.mark.parametrize("onednn", [False, True])
def test_not_fused_by_moving_statistics_where_operations_are_deterministic(onednn, monkeypatch):
    """Of that operation GPUs have no deterministic gradient."""
    monkeypatch.setattr(dilated_conv, "_runs", lambda *_: onednn)
    monkeypatch.setattr(batch_norm, "is_op_determinism_enabled", lambda: True)
    x = values(2, 3, 4)
    for settings in ({"trainable": False}, {"frozen_statistics": True}):
        ours, keras_own = pair(x)
        for name, value in settings.items():
            setattr(ours, name, value)
        assert "FusedBatchNormV3" not in operations(ours, None, None, None)
        with inference_graph("here"):
            assert "FusedBatchNormV3" in operations(ours, None, None, None, training=False)
        np.testing.assert_allclose(ours(x, training=True), keras_own(x), atol=1e-5)
    assert "FusedBatchNormV3" in operations(pair(x)[0], 8, None, None)


@pytest.mark.parametrize(
    "shape, is_conditional",
    [((8, None, None), False), ((None, 1, 2), False), ((None, 1, 1), True), ((1, None, 1), True)],
)
def test_a_condition_only_where_the_shape_leaves_it_open(shape, is_conditional, monkeypatch):
    monkeypatch.setattr(batch_norm, "is_onednn_graph", lambda: False)
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
    "run, shape",
    [
        (lambda f: f, (1, 1, 1)),
        (lambda f: f, (1,)),
        (tf.function, (1, 1, 1)),
        (traced_for(None, None, None), (1, 1, 1)),
    ],
)
def test_a_single_value_is_normalised_by_the_moving_statistics(run, shape):
    x = values(*shape)
    ours, keras_own = pair(x)
    before = ours.get_weights()
    found = results(ours, x, True, run)
    np.testing.assert_array_equal(found[-2:], before[2:])
    np.testing.assert_allclose(found[0], normalized(x.numpy(), ours), rtol=1e-5, atol=1e-5)
    assert_same(found, results(keras_own, x, False))
    # What it is there for: Keras returns beta, whatever the image.
    np.testing.assert_allclose(np.ravel(keras_own(x, training=True)), ours.beta, atol=1e-5)


@pytest.mark.parametrize(
    "shape, known", [((2, 1, 1), (None, 1, 1)), ((1, 1, 2), 3 * (None,)), ((3, 2, 2), 3 * (None,))]
)
def test_two_values_are_a_batch(shape, known):
    x = values(*shape)
    # The statistics of this batch alone. TensorFlow's variance of 2 values is twice as large.
    ours, keras_own = pair(x, momentum=0.0)
    assert_same(results(ours, x, True, traced_for(*known)), results(keras_own, x, True))


@pytest.mark.parametrize("shape", [(None, None, None), (None, 2, 2), (None, 1, 1)])
def test_an_empty_batch_moves_nothing(shape):
    ours, _ = pair(values(1, 2, 2))
    before = ours.get_weights()
    size = [n or 2 for n in shape[1:]]
    found = results(ours, values(0, *size), True, traced_for(*shape))
    np.testing.assert_array_equal(found[-2:], before[2:])
    assert all(np.isfinite(part).all() for part in found)


def test_masks_are_left_to_keras():
    x = values(2, 3, 4)
    ours, keras_own = pair(x)
    mask = np.random.default_rng(0).random((2, 3, 4)) > 0.4
    expected = keras_own(x, training=True, mask=mask)
    np.testing.assert_allclose(ours(x, training=True, mask=mask), expected, atol=1e-5)
    assert np.abs(expected - ours(x, training=True)).max() > 0.01


def test_a_single_value_that_a_mask_leaves_is_not_normalised_by_itself():
    x = values(1, 2)  # (1, 2, channels)
    ours, _ = pair(x)
    before = ours.get_weights()
    mask = np.array([[True, False]])
    np.testing.assert_allclose(ours(x, training=True, mask=mask), ours(x), atol=1e-5)
    for old, new in zip(before[2:], ours.get_weights()[2:], strict=True):
        np.testing.assert_allclose(new, old, atol=1e-5)


def test_frozen_statistics():
    x = values(4, 3, 3)
    ours, keras_own = pair(x)
    ours.frozen_statistics = True
    before = ours.get_weights()
    assert len(ours.trainable_weights) == 2
    # As inference, but with gradients that train gamma and beta.
    assert_same(results(ours, x, True), results(keras_own, x, False))
    np.testing.assert_array_equal(ours.get_weights()[2:], before[2:])


def test_it_takes_keras_own_configuration():
    keras_own = keras.layers.BatchNormalization(momentum=0.8, scale=False, name="norm")
    ours = BatchNormalization.from_config(keras_own.get_config())
    assert ours.get_config() == {**keras_own.get_config(), "frozen_statistics": False}


def on_replicas(
    strategy: tf.distribute.Strategy, x: np.ndarray, layer_class: type = BatchNormalization, **more
) -> list[np.ndarray]:
    """Outputs of a batch that two replicas share, and the moving statistics after it."""
    with strategy.scope():
        layer = layer_class(momentum=0.5, **more)
        layer.build((None, *x.shape[1:]))
    parts = tf.data.Dataset.from_tensor_slices(x).batch(len(x))
    spread = strategy.experimental_distribute_dataset(parts)

    @tf.function
    def step(images):
        return strategy.run(lambda one: layer(one, training=True), (images,))

    outputs = strategy.experimental_local_results(step(next(iter(spread))))
    return [np.concatenate(outputs), layer.moving_mean.numpy(), layer.moving_variance.numpy()]


def whole(x: np.ndarray, training: bool = True) -> list[np.ndarray]:
    """Keras' own layer on the whole batch."""
    layer = keras.layers.BatchNormalization(momentum=0.5)
    outputs = layer(x, training=training)
    return [outputs.numpy(), layer.moving_mean.numpy(), layer.moving_variance.numpy()]


@pytest.mark.slow
def test_across_replicas(mirrored):
    """Synchronised statistics are the whole batch's, own ones are not."""
    x = np.random.default_rng(0).normal(2, 1, (4, 3, 2, 3)).astype(np.float32)
    x[:2] += 3  # the replicas differ
    assert_same(on_replicas(mirrored, x, synchronized=True), whole(x), 1e-4)
    own = on_replicas(mirrored, x)
    halves = np.concatenate([whole(half)[0] for half in (x[:2], x[2:])])
    assert_same(own[:1], [halves], 1e-4)
    assert_same(own, on_replicas(mirrored, x, keras.layers.BatchNormalization), 1e-4)
    # One value for each replica: by itself neither has statistics.
    single = x[1:3, :1, :1]
    assert_same(on_replicas(mirrored, single, synchronized=True), whole(single), 1e-4)
    assert_same(on_replicas(mirrored, single), whole(single, training=False), 1e-4)
    # A single value in all replicas together, the second's batch being empty.
    for synchronized in (True, False):
        found = on_replicas(mirrored, single[:1], synchronized=synchronized)
        assert_same(found, whole(single[:1], training=False), 1e-4)
