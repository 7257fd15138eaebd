from __future__ import annotations

import keras
import numpy as np
import pytest
from layer_checks import conv_by_hand, convolve, picture, randomized, separable_by_hand

from keras_deeplab.layers import AtrousConv2D, AtrousSeparableConv2D


def built(layer, x):
    layer(x)
    return randomized(layer)


@pytest.mark.parametrize("rate", [(1, 1), (5, 5), (1, 3)])
@pytest.mark.parametrize("kernel_size", [(3, 3), (1, 5)])
def test_is_an_ordinary_convolution_with_a_zero_stuffed_kernel(rate, kernel_size):
    x = picture(9, 7)
    layer = built(AtrousConv2D(4, kernel_size, dilation_rate=rate), x)
    np.testing.assert_allclose(layer(x), conv_by_hand(x, layer, rate), rtol=1e-4, atol=1e-4)


def test_without_batch_norm_there_are_biases():
    x = picture(6, 5)
    layer = built(AtrousConv2D(4, 3, batch_norm=False, activation=None), x)
    kernel, bias = layer.get_weights()
    np.testing.assert_allclose(layer(x), convolve(x, kernel, (1, 1)) + bias, rtol=1e-4, atol=1e-4)
    layer = built(AtrousSeparableConv2D(5, 3, batch_norm=False), x)
    assert [w.name for w in layer.weights].count("bias") == 2


@pytest.mark.parametrize("size", [(12, 11), (13, 14), (1, 2)])
@pytest.mark.parametrize("kernel_size, stride", [(3, 2), (5, 3)])
def test_strided_pads_both_sides_alike(size, stride, kernel_size):
    x = picture(*size)
    layer = built(AtrousConv2D(4, kernel_size, strides=stride), x)
    strided = conv_by_hand(x, layer, stride=stride)
    np.testing.assert_allclose(layer(x), strided, rtol=1e-4, atol=1e-4)
    # The samples are those of the stride-free convolution at the pixels 0, stride, 2 * stride ...
    dense = conv_by_hand(x, layer)
    np.testing.assert_allclose(layer(x), dense[:, ::stride, ::stride], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rate, between", [(1, True), (3, False)])
def test_separable_is_depthwise_then_1x1(rate, between):
    x = picture(8, 9)
    layer = built(AtrousSeparableConv2D(5, 3, dilation_rate=rate, depthwise_activation=between), x)
    expected = separable_by_hand(x, layer, rate, between)
    np.testing.assert_allclose(layer(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer_class", [AtrousConv2D, AtrousSeparableConv2D])
def test_layers_that_share_an_initializer_start_differently(layer_class):
    initializer = keras.initializers.HeNormal()
    first, second = (layer_class(4, kernel_initializer=initializer) for _ in range(2))
    for layer in (first, second):
        layer(picture(4, 4))
    assert np.abs(first.weights[0] - second.weights[0]).max() > 0.1


@pytest.mark.parametrize("layer_class", [AtrousConv2D, AtrousSeparableConv2D])
def test_a_function_is_an_initializer_too(layer_class):
    def halves(shape, dtype=None):
        return keras.ops.full(shape, 0.5, dtype)

    layer = layer_class(4, kernel_initializer=halves)
    layer(picture(4, 4))
    for weight in layer.weights:
        if "kernel" in weight.name:
            np.testing.assert_array_equal(weight, 0.5)


@pytest.mark.parametrize("layer_class", [AtrousConv2D, AtrousSeparableConv2D])
def test_dilated_config_gives_a_finer_map_of_the_same_weights(layer_class):
    x = picture(11, 12)
    strided = built(layer_class(4, 3, strides=2), x)
    fine = layer_class.from_config(strided.dilated_config((1, 1)))
    fine(x)
    fine.set_weights(strided.get_weights())
    np.testing.assert_allclose(fine(x)[:, ::2, ::2], strided(x), rtol=1e-4, atol=1e-4)
    assert layer_class(4, 1).dilated_config((4, 4))["dilation_rate"] == (1, 1)
    rows = layer_class(4, (1, 3), dilation_rate=2).dilated_config((4, 4))
    assert rows["dilation_rate"] == (1, 8)
