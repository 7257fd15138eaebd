"""The effective field and the transposed convolution of a one-hot map."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from calibration import calibrate, image
from keras import layers as kl
from models import networks

import keras_deeplab as kd
from keras_deeplab.analysis import (
    EffectiveField,
    effective_receptive_field,
    receptive_field,
    transposed_receptive_field,
)


def linear_stack():
    """Strides, rates, both paddings, a depthwise kernel and a pooling."""
    return keras.Sequential(
        [
            keras.Input((None, None, 3)),
            kl.ZeroPadding2D(((1, 2), (0, 1))),
            kl.Conv2D(4, 3, strides=2, padding="valid", use_bias=True),
            kd.layers.Conv2D(5, 3, padding="same", dilation_rate=3),
            kl.Activation("linear"),
            kl.DepthwiseConv2D((3, 2), padding="same", depth_multiplier=2),
            kl.AveragePooling2D(3, 2, padding="same"),
            kl.Conv2D(2, (1, 3), padding="same"),
        ]
    )


@pytest.mark.parametrize("size", [(29, 34), (30, 33)])
@pytest.mark.parametrize("position", [None, (0, 0), (2, 5)])
def test_transposed_convolutions_are_exactly_the_gradient(size, position):
    model = linear_stack()
    pixels = tf.constant(image(*size))
    with tf.GradientTape() as tape:
        tape.watch(pixels)
        output = model(pixels)
        row, column = position or (output.shape[1] // 2, output.shape[2] // 2)
        loss = tf.reduce_sum(output[0, row, column])
    gradient = tape.gradient(loss, pixels).numpy()[0]
    found = transposed_receptive_field(model, size, position)
    assert np.ptp(gradient) > 1e-2
    np.testing.assert_allclose(found, gradient, atol=1e-6)


def test_its_support_is_the_theoretical_field():
    """With kernels of ones no weight cancels another one."""
    options = {"padding": "same", "kernel_initializer": "ones"}
    layers = [kl.Conv2D(1, 3, dilation_rate=rate, **options) for rate in (1, 2, 4)]
    first = kl.Conv2D(1, 3, strides=2, **options)
    model = keras.Sequential([keras.Input((None, None, 1)), first, *layers])
    stage = receptive_field(model, 65, 65).stages[-1]
    rows, columns, _ = np.nonzero(transposed_receptive_field(model, (65, 65)))
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == stage.receptive_field == (31, 31)


@pytest.mark.parametrize(
    "layers, message",
    [
        ([kl.Conv2D(2, 3, activation="relu")], "no activations"),
        ([kl.MaxPooling2D()], "linear layers"),
        ([kl.Conv2DTranspose(2, 3)], "linear layers"),
        ([kl.Conv2D(3, 3, groups=3)], "linear layers"),
    ],
)
def test_other_layers_are_an_error(layers, message):
    model = keras.Sequential([keras.Input((None, None, 3)), *layers])
    with pytest.raises(ValueError, match=message):
        transposed_receptive_field(model, (9, 9))
    inputs = keras.Input((None, None, 3))
    x = kl.Conv2D(3, 3, padding="same")(inputs)
    with pytest.raises(ValueError, match="no branches"):
        transposed_receptive_field(keras.Model(inputs, kl.Add()([x, inputs])), (9, 9))


def test_positions_outside_and_images_smaller_than_the_kernels_are_errors():
    stack = keras.Sequential([keras.Input((None, None, 1)), kl.Conv2D(1, 3)])
    for position in [(5, 0), (-1, 0), (0,), (0.5, 1), 3]:
        with pytest.raises(ValueError, match="`position` must be"):
            transposed_receptive_field(stack, (7, 7), position)
    assert transposed_receptive_field(stack, (7, 7), (4, 0))[6, 0] != 0
    with pytest.raises(ValueError, match="the image is too small"):
        transposed_receptive_field(stack, (2, 9))
    inputs = keras.Input((None, None, 1))
    x = kl.Conv2D(1, 3)(inputs)
    with pytest.raises(ValueError, match="one output"):
        transposed_receptive_field(keras.Model(inputs, [x, kl.Conv2D(1, 3)(x)]), (9, 9))


def test_the_side_holds_95_percent():
    field = np.zeros((21, 31), np.float32)
    field[10, 15] = 0.90
    field[10, 18] = 0.04
    field[3, 15] = 0.03
    field[10, 30] = 0.03
    assert EffectiveField(field, (10, 15)).side == 15  # 0.97 within 7 pixels
    field[10, 15], field[10, 30] = 0.93, 0.0
    assert EffectiveField(field, (10, 15)).side == 7


def test_a_linear_network_has_the_field_of_its_kernels():
    weights = np.array([1.0, 4.0, 6.0, 4.0, 1.0])
    layer = kl.DepthwiseConv2D(5, padding="same", use_bias=False, name="blur")
    model = keras.Sequential([keras.Input((None, None, 3)), layer])
    layer.set_weights([np.tile(np.outer(weights, weights)[..., None, None], (1, 1, 3, 1))])
    found = effective_receptive_field(model, size=(15, 17))
    assert found.center == (7, 8)
    np.testing.assert_allclose(found.map.sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(
        found.map[5:10, 6:11], np.outer(weights, weights) / weights.sum() ** 2, rtol=1e-4
    )
    assert found.side == 5


def test_the_centre_is_that_of_the_sample():
    """Five symmetric strides: sample 1 of a map of 2 is at pixel 32, not at 48."""
    blur = {"use_bias": False, "depthwise_initializer": "ones"}
    pairs = [(kl.ZeroPadding2D(1), kl.DepthwiseConv2D(3, 2, **blur)) for _ in range(5)]
    model = keras.Sequential([keras.Input((None, None, 3)), *sum(pairs, ())])
    found = effective_receptive_field(model, size=(64, 64))
    assert found.center == (32, 32)
    np.testing.assert_allclose(np.average(np.arange(64), weights=found.map.sum(0)), 32, rtol=1e-5)


@pytest.mark.slow
def test_of_a_model_and_of_a_layer():
    keras.utils.set_random_seed(0)  # so that no output at the centre is 0
    model = calibrate(kd.DeepLabV3Plus(4, networks.tiny(), aspp_filters=8), image(65, 65, 2))
    images = image(97, 129, 2, seed=3)
    whole = effective_receptive_field(model, images)
    low = effective_receptive_field(model, images, layer="decoder_low_level")
    assert whole.map.shape == low.map.shape == (97, 129)
    assert low.side <= 19 < whole.side
    assert whole.center == (48, 64)
    np.testing.assert_allclose([whole.map.sum(), low.map.sum()], 1, rtol=1e-4)
    again = effective_receptive_field(model, images)
    np.testing.assert_array_equal(whole.map, again.map)


def test_bad_arguments():
    inputs, dead = keras.Input((None, None, 3)), kl.Conv2D(2, 3, kernel_initializer="zeros")
    model = keras.Sequential([inputs, kl.Conv2D(2, 3, padding="same")])
    for network, arguments, message in (
        (model, {"images": np.zeros((5, 5, 3))}, "images"),
        (model, {"layer": "x"}, "layer_name"),
        (keras.Sequential([inputs, dead]), {"size": (9, 9)}, "reestimate_batch_norm"),
    ):
        with pytest.raises(ValueError, match=message):
            effective_receptive_field(network, **arguments)


def test_networks_without_a_gradient_are_an_error():
    """Integers have none; in float16 it can overflow."""
    inputs = keras.Input((None, None, 3), dtype="uint8")
    x = kl.Conv2D(2, 3)(kl.Rescaling(1 / 255)(inputs))
    with pytest.raises(ValueError, match="input of floating-point numbers. Received: .*uint8"):
        effective_receptive_field(keras.Model(inputs, x), size=(9, 9))
    large = keras.initializers.Constant(6e4)
    half = kl.Conv2D(64, 3, kernel_initializer=large, dtype="mixed_float16")
    total = kl.Conv2D(1, 1, kernel_initializer="ones")
    model = keras.Sequential([keras.Input((None, None, 3)), half, total])
    with pytest.raises(ValueError, match="infinite gradients .*with_dtype"):
        effective_receptive_field(model, size=(9, 9))
