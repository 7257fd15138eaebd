"""Dilated convolutions: Keras' results and gradients in every formulation."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl

from keras_deeplab.graph import with_output_stride
from keras_deeplab.layers import Conv2D, DepthwiseConv2D, SeparableConv2D, dilated_conv

PAIRS = {
    "dense": (Conv2D, kl.Conv2D, {"filters": 5}),
    "depthwise": (DepthwiseConv2D, kl.DepthwiseConv2D, {}),
    "multiplied": (DepthwiseConv2D, kl.DepthwiseConv2D, {"depth_multiplier": 2}),
    "separable": (SeparableConv2D, kl.SeparableConv2D, {"filters": 5}),
    "grouped": (Conv2D, kl.Conv2D, {"filters": 6, "groups": 2}),
}
# Without oneDNN, as on processors without AVX-512, TensorFlow adds up in half precision: 0.03.
TOLERANCES = {"float32": 1e-5, "float64": 1e-12, "bfloat16": 0.04}


def outputs_and_gradients(layer, x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
    weights = tf.random.stateless_normal(tf.shape(y), (1, 2), dtype=tf.float64)
    upstream = tf.cast(tf.cast(weights, tf.bfloat16), y.dtype)  # the same in every dtype
    return (y, *tape.gradient(y, [x, *layer.trainable_variables], upstream))


def compare(kind, dtype, settings, size, is_dynamic):
    made, reference_class, options = PAIRS[kind]
    layer = made(**options, **settings, dtype=dtype)
    reference = reference_class(**options, **settings, dtype="float64")
    assert layer.get_config().keys() == reference.get_config().keys()
    random = np.random.default_rng(0)
    x = tf.cast(random.normal(size=(2, *size, 4)), tf.bfloat16)
    layer.build(x.shape)
    reference.build(x.shape)
    for own, other in zip(layer.weights, reference.weights, strict=True):
        assert own.path.split("/")[-1] == other.path.split("/")[-1]
        values = tf.cast(random.normal(size=own.shape), tf.bfloat16)
        own.assign(tf.cast(values, dtype))
        other.assign(tf.cast(values, tf.float64))
    spec = tf.TensorSpec((None, None, None, 4) if is_dynamic else x.shape, dtype)
    traced = tf.function(partial(outputs_and_gradients, layer), input_signature=[spec])
    found = traced(tf.cast(x, dtype))
    expected = outputs_and_gradients(reference, tf.cast(x, tf.float64))
    for own, other in zip(found, expected, strict=True):
        spread = tf.math.reduce_std(other)
        assert spread > 0.1 or not np.any(other)
        error = tf.math.reduce_std(tf.cast(own, tf.float64) - other) / (spread + 1e-9)
        # Keras adds up the gradient of a bias in half precision.
        tolerance = TOLERANCES[dtype] * (5 if own.shape.rank == 1 else 1)
        assert error < tolerance, (kind, settings, float(error))


# Arguments, size of the map and whether it is unknown when the layer is traced.
SETTINGS = [
    ({"kernel_size": 3, "dilation_rate": 2, "padding": "same"}, (31, 40), True),
    # Some taps miss the small map.
    ({"kernel_size": 3, "dilation_rate": 12, "padding": "same"}, (10, 9), False),
    ({"kernel_size": 3, "dilation_rate": 12, "padding": "same", "use_bias": False}, (9, 31), True),
    ({"kernel_size": (2, 3), "dilation_rate": (7, 1), "padding": "same"}, (10, 9), True),
    ({"kernel_size": (3, 2), "dilation_rate": (1, 7), "padding": "same"}, (10, 9), False),
    # No tap meets the map.
    ({"kernel_size": 2, "dilation_rate": 7, "padding": "same"}, (3, 3), False),
    (
        {"kernel_size": (2, 5), "dilation_rate": (3, 2), "padding": "valid", "activation": "tanh"},
        (31, 40),
        False,
    ),
]


# The others are made of these, or Keras' own.
CASES = [(kind, dtype) for kind in ("dense", "depthwise") for dtype in TOLERANCES]
CASES += [(kind, "float32") for kind in ("multiplied", "separable", "grouped")]


@pytest.mark.slow
@pytest.mark.parametrize("kind, dtype", CASES)
def test_results_and_gradients_are_keras(kind, dtype):
    for settings in SETTINGS[:1] if kind == "grouped" else SETTINGS:
        compare(kind, dtype, *settings)


@pytest.mark.parametrize("layer", [Conv2D, DepthwiseConv2D, SeparableConv2D])
def test_integers_are_an_error_as_in_keras(layer):
    arguments = () if layer is DepthwiseConv2D else (4,)
    for rate in (1, 2):
        dilated = layer(*arguments, kernel_size=3, dilation_rate=rate)
        with pytest.raises((tf.errors.InvalidArgumentError, TypeError, ValueError)):
            dilated(tf.ones((1, 9, 9, 2), tf.int32))


@pytest.mark.parametrize("kind", ["depthwise", "separable"])
@pytest.mark.parametrize("settings", [{"strides": (2, 1)}, {"data_format": "channels_first"}])
def test_strides_and_channels_first_are_as_in_keras(kind, settings):
    made, reference_class, options = PAIRS[kind]
    x = tf.random.stateless_normal((1, 9, 9, 9), (1, 2))
    layer, reference = (
        each(**options, **settings, kernel_size=3, dilation_rate=2)
        for each in (made, reference_class)
    )
    expected = reference(x)
    layer.build(x.shape)
    layer.set_weights(reference.get_weights())
    assert tf.math.reduce_std(expected) > 0.1
    np.testing.assert_allclose(layer(x), expected, atol=1e-5)


def compare_second(kind):
    """A gradient of a gradient, as of gradient penalties, against Keras'."""
    made, reference_class, options = PAIRS[kind]
    settings = {"kernel_size": 3, "dilation_rate": 2, "padding": "same", "activation": "tanh"}
    x = tf.random.stateless_normal((1, 9, 8, 4), (1, 2))
    found, weights = [], None
    for each in (made, reference_class):
        layer = each(**options, **settings)
        layer.build(x.shape)
        weights = weights or layer.get_weights()
        layer.set_weights(weights)
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = layer(x)
            penalty = tf.reduce_sum(inner.gradient(y, x) ** 2)
        found.append(outer.gradient(penalty, layer.trainable_variables[0]))
    assert tf.math.reduce_std(found[1]) > 0.1
    np.testing.assert_allclose(*found, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["dense", "depthwise"])
def test_gradients_of_gradients_are_keras(kind):
    compare_second(kind)


EXPORTED = {
    "dense": lambda: Conv2D(4, 3, dilation_rate=6, padding="same"),
    "depthwise": lambda: DepthwiseConv2D(3, dilation_rate=2, padding="same"),
    "depthwise, far": lambda: DepthwiseConv2D(3, dilation_rate=12, padding="same"),
    "separable": lambda: SeparableConv2D(4, 3, dilation_rate=2, padding="same"),
}


def load_exported(folder, kind, dtype="float32"):
    """By Keras' own export, which stores the gradients of functions too."""
    inputs = keras.Input((None, None, 4))
    keras.config.set_dtype_policy(dtype)
    model = keras.Model(inputs, EXPORTED[kind]()(inputs))
    keras.config.set_dtype_policy("float32")
    model.export(folder, verbose=False)
    x = tf.random.stateless_normal((1, 9, 8, 4), (1, 2))
    loaded = tf.saved_model.load(folder)
    outputs = tf.cast(loaded.serve(x), tf.float32)
    assert tf.math.reduce_std(outputs) > 0.05
    np.testing.assert_allclose(outputs, tf.cast(model(x), tf.float32), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("kind", EXPORTED)
def test_a_saved_model_of_keras_is_loaded(tmp_path, kind):
    load_exported(str(tmp_path / "model"), kind)


def test_a_saved_model_of_half_precision_is_loaded(tmp_path):
    load_exported(str(tmp_path / "model"), "dense", "mixed_bfloat16")


@pytest.mark.slow
def test_without_onednn(tmp_path):
    """Without oneDNN there are neither native depthwise convolutions nor native gradients."""
    code = (
        "import sys, test_dilated_conv as t\n"
        "for kind in ('dense', 'depthwise'):\n"
        "    for settings in t.SETTINGS:\n"
        "        t.compare(kind, 'float32', *settings)\n"
        "    t.compare_second(kind)\n"
        "    t.load_exported(f'{sys.argv[1]}/{kind}', kind)\n"
        "d = t.dilated_conv\n"
        "for operation in (d.native_depthwise, d._native_input_gradient):\n"
        "    assert not d._runs(operation, t.tf.float32)\n"
        "assert not d.is_onednn_graph()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "TF_ENABLE_ONEDNN_OPTS": "0", "PYTHONPATH": _path()},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def _path() -> str:
    here = os.path.dirname(os.path.abspath(__file__))
    return os.pathsep.join([here, os.path.dirname(os.path.dirname(here))])


def operations(layer, target, dtype="float32"):
    """The kinds of operations in a layer's graph."""
    with dilated_conv.inference_graph(target):
        spec = tf.TensorSpec((None, None, None, 4), dtype)
        graph = tf.function(layer).get_concrete_function(spec).graph
    return {operation.type for operation in graph.get_operations()}


def test_a_converter_finds_native_operations():
    for made, options in ((Conv2D, {"filters": 5}), (DepthwiseConv2D, {})):
        for rate in (2, 12):
            for dtype in ("float32", "bfloat16"):
                layer = made(kernel_size=3, dilation_rate=rate, dtype=dtype, **options)
                found = operations(layer, "converter", dtype)
                assert found & {"Conv2D", "DepthwiseConv2dNative"}
                assert not found & {"SpaceToBatchND", "MatMul", "IdentityN"}


def test_a_server_needs_no_native_depthwise_operation():
    layer = DepthwiseConv2D(3, dilation_rate=2)
    assert "SpaceToBatchND" in operations(layer, "server")
    assert "SpaceToBatchND" not in operations(Conv2D(5, 3, dilation_rate=2), "server")


def test_half_precision_at_large_rates_is_computed_by_taps():
    found = operations(Conv2D(5, 3, dilation_rate=12, dtype="bfloat16"), "here", "bfloat16")
    assert "MatMul" in found
    assert "Conv2D" not in found


def test_the_rewritten_network_computes_its_dilated_kernels_fast():
    inputs = keras.Input((None, None, 3))
    x = kl.Conv2D(4, 3, 2, padding="same", name="first")(inputs)
    x = kl.SeparableConv2D(4, 3, 2, padding="same", name="second")(x)
    x = kl.DepthwiseConv2D(3, padding="same", name="third")(x)
    outputs = kl.Conv2D(5, 3, padding="same", name="fourth")(x)
    dense = with_output_stride(keras.Model(inputs, outputs), 2)
    kinds = {name: type(dense.get_layer(name)) for name in ("first", "second", "third", "fourth")}
    # The second loses its stride, those after it are dilated.
    assert kinds == {
        "first": kl.Conv2D,
        "second": kl.SeparableConv2D,
        "third": DepthwiseConv2D,
        "fourth": Conv2D,
    }
