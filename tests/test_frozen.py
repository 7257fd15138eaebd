"""Inference graphs compute what the model does, without batch norms and variables."""

from __future__ import annotations

from collections import Counter

import keras
import numpy as np
import pytest
import tensorflow as tf
from calibration import calibrate
from keras import layers as kl

from keras_deeplab import MultiScale
from keras_deeplab.frozen import FrozenFunction
from keras_deeplab.layers import (
    AtrousConv2D,
    AtrousSeparableConv2D,
    BatchNormalization,
    DepthwiseConv2D,
)
from keras_deeplab.layers.dilated_conv import _runs, native_depthwise

SPEC = [tf.TensorSpec((None, None, None, 3), name="images")]


def network(dtype: str = "float32", depthwise_rates: tuple[int, int] = (12, 2)) -> keras.Model:
    """A batch norm behind every kind of layer that it can and cannot be folded into."""
    policy, (first, second) = {"dtype": dtype}, depthwise_rates
    inputs = x = keras.Input((None, None, 3), name="images")
    x = kl.Conv2D(8, 3, padding="same", **policy)(x)  # with a bias
    x = BatchNormalization(**policy)(x)
    x = kl.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False, **policy)(x)
    x = BatchNormalization(scale=False, **policy)(x)
    x = BatchNormalization(**policy)(kl.Dense(8, bias_initializer="ones", **policy)(x))
    x = DepthwiseConv2D(3, dilation_rate=first, padding="same", bias_initializer="ones", **policy)(
        x
    )
    x = BatchNormalization(**policy)(x)  # with a bias, behind what is no single operation
    x = AtrousConv2D(8, 3, dilation_rate=7, **policy)(x)
    x = AtrousSeparableConv2D(8, 3, dilation_rate=second, **policy)(x)
    shared = kl.Conv2D(8, 1, **policy)(x)  # read twice
    x = kl.Add()([BatchNormalization(**policy)(shared), shared])
    x = BatchNormalization(center=False, **policy)(x)  # behind a sum
    model = keras.Model(inputs, kl.Conv2D(4, 1, dtype="float32")(x))
    calibrate(model, np.random.default_rng(0).normal(size=(2, 33, 31, 3)))
    return model


@pytest.mark.parametrize(
    "dtype, target", [("float32", "server"), ("float32", "converter"), ("mixed_bfloat16", "here")]
)
def test_it_computes_what_the_model_does_without_batch_norms(dtype, target):
    # Converters get native depthwise convolutions, which processors without oneDNN cannot run.
    precision = tf.as_dtype(dtype.removeprefix("mixed_"))
    can_run = target != "converter" or _runs(native_depthwise, precision)
    model = network(dtype, (12, 2) if can_run else (1, 1))
    frozen = FrozenFunction(
        lambda x: {"b": model(x, training=False), "a": tf.shape(x)}, SPEC, target
    )
    kinds = Counter(node.type for node in frozen.concrete.graph.get_operations())
    assert not {kind for kind in kinds if "BatchNorm" in kind or "Variable" in kind}
    for size in ((33, 31), (40, 57)):
        x = tf.random.stateless_normal((2, *size, 3), (1, 2))
        outputs, expected = frozen(x), model(x, training=False)
        assert outputs["a"].numpy().tolist() == [2, *size, 3]
        spread = float(tf.math.reduce_std(expected))
        assert spread > 0.01
        error = float(tf.math.reduce_std(outputs["b"] - expected)) / spread
        assert error < (1e-5 if dtype == "float32" else 0.03)


def frozen_as(model, size):
    """The frozen function and what it computes, compared with the model."""
    spec = [tf.TensorSpec(model.input_shape, name="images")]
    frozen = FrozenFunction(lambda x: {"y": model(x, training=False)}, spec, "here")
    x = tf.random.stateless_normal((2, *size, 3), (1, 2))
    expected = model(x, training=False).numpy()
    np.testing.assert_allclose(frozen(x)["y"], expected, rtol=1e-4, atol=1e-5)
    return frozen, expected


@pytest.mark.parametrize(
    "shape", [(1, 1, 8, 1), (1, 8, 1, 1), (8, 1), (8, 1, 8), (1, 1, 1, 8), (8,), ()]
)
def test_only_a_constant_for_each_channel_is_folded_with_a_batch_norm(shape):
    """One for each of as many rows or columns is none."""
    values = tf.reshape(tf.range(np.prod(shape), dtype=tf.float32), shape)
    inputs = keras.Input((8, 8, 3))
    x = kl.Conv2D(8, 3, padding="same", use_bias=False)(inputs)
    model = keras.Model(inputs, BatchNormalization()(x + values))
    calibrate(model, np.random.default_rng(0).normal(size=(2, 8, 8, 3)))
    frozen, _ = frozen_as(model, (8, 8))
    kinds = Counter(node.type for node in frozen.concrete.graph.get_operations())
    assert kinds["Mul"] == (shape not in [(1, 1, 1, 8), (8,)])


@pytest.mark.parametrize("layer", [kl.Conv2D(4, 3), kl.ReLU()])
def test_a_batch_norm_behind_a_batch_norm(layer):
    model = keras.Sequential([keras.Input((8, 8, 3)), layer])
    model.add(BatchNormalization())
    model.add(BatchNormalization())
    calibrate(model, np.random.default_rng(0).normal(size=(2, 8, 8, 3)))
    frozen_as(model, (8, 8))


@pytest.mark.parametrize("layer", [kl.Conv2D, kl.DepthwiseConv2D, kl.SeparableConv2D])
def test_a_bias_is_folded_with_a_batch_norm(layer):
    arguments = () if layer is kl.DepthwiseConv2D else (8,)
    model = keras.Sequential([keras.Input((None, None, 3)), layer(*arguments, kernel_size=3)])
    model.add(BatchNormalization())
    calibrate(model, np.random.default_rng(0).normal(size=(2, 8, 8, 3)))
    spec = [tf.TensorSpec((None, None, None, 3), name="images")]
    frozen = FrozenFunction(lambda x: {"y": model(x, training=False)}, spec, "server")
    kinds = {node.type for node in frozen.concrete.graph.get_operations()}
    assert not kinds & {"Mul", "AddV2", "Squeeze", "Reshape"}


def test_a_convolution_that_is_read_twice_keeps_its_kernel():
    """Without a bias, which would stand between it and the batch norm."""
    inputs = keras.Input((None, None, 3))
    x = kl.Conv2D(8, 3, use_bias=False)(inputs)
    model = keras.Model(inputs, kl.Concatenate()([x, BatchNormalization()(x)]))
    calibrate(model, np.random.default_rng(0).normal(size=(2, 8, 8, 3)))
    _, expected = frozen_as(model, (9, 8))
    assert np.abs(expected[..., :8] - expected[..., 8:]).max() > 0.1


def test_a_kernel_is_folded_with_each_of_the_norms_behind_it():
    inputs, conv = keras.Input((None, None, 3)), kl.Conv2D(8, 3, use_bias=False)
    both = [BatchNormalization()(conv(x)) for x in (inputs, kl.ReLU()(inputs))]
    model = keras.Model(inputs, kl.Concatenate()(both))
    random = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(random.uniform(0.5, 1.5, weight.shape))
    _, expected = frozen_as(model, (9, 8))
    assert np.abs(expected[..., :8] - expected[..., 8:]).max() > 0.1


def test_later_changes_of_the_model_do_not_reach_it():
    model = network()
    frozen = FrozenFunction(lambda x: {"logits": model(x, training=False)}, SPEC)
    x = tf.random.stateless_normal((1, 20, 20, 3), (1, 2))
    before = frozen(x)["logits"].numpy()
    for weight in model.weights:
        weight.assign(weight * 2)
    np.testing.assert_array_equal(frozen(x)["logits"], before)


def test_constants_that_nothing_reads_are_left_out_and_assertions_stay():
    model = network()

    def checked(x):
        with tf.control_dependencies([tf.debugging.Assert(tf.shape(x)[1] > 8, [tf.shape(x)])]):
            return {"logits": model(tf.identity(x), training=False)}

    frozen = FrozenFunction(checked, SPEC)
    constants = [o for o in frozen.concrete.graph.get_operations() if o.type == "Const"]
    kernels = [o.outputs[0].shape for o in constants if o.outputs[0].shape.rank == 4]
    assert len(kernels) == sum(weight.shape.rank == 4 for weight in model.weights)
    assert frozen(tf.ones((1, 9, 9, 3)))["logits"].shape == (1, 7, 7, 4)
    with pytest.raises(tf.errors.InvalidArgumentError, match="assertion failed"):
        frozen(tf.ones((1, 8, 9, 3)))


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_views_share_their_kernels(dtype):
    model = network(dtype)
    several = MultiScale(model, (0.5,), fusion="mean", flip=True)
    frozen = FrozenFunction(lambda x: {"logits": several(x, training=False)}, SPEC, "server")
    constants = [o for o in frozen.concrete.graph.get_operations() if o.type == "Const"]
    kernels = [o for o in constants if o.outputs[0].shape.rank == 4]
    assert len(kernels) == sum(weight.shape.rank == 4 for weight in model.weights)
    x = tf.random.stateless_normal((1, 40, 57, 3), (1, 2))
    expected = several(x, training=False).numpy()
    error = np.abs(frozen(x)["logits"] - expected).max() / expected.std()
    assert error < (1e-4 if dtype == "float32" else 0.3)


def test_variables_inside_control_flow():
    model = network()

    def twice(x):
        return {"logits": tf.map_fn(lambda y: model(y[None], training=False)[0], x)}

    frozen = FrozenFunction(twice, SPEC, "server")
    x = tf.random.stateless_normal((2, 20, 20, 3), (1, 2))
    expected = model(x, training=False)
    assert np.abs(frozen(x)["logits"] - expected).max() < 1e-4 * np.std(expected)
