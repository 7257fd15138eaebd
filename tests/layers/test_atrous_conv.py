from __future__ import annotations

import keras
import numpy as np
import pytest
from layer_checks import convolve, depthwise_as_full, normalized, randomized, relu, zero_stuffed

from keras_deeplab.layers import AtrousConv2D, AtrousSeparableConv2D


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(2, height, width, channels)).astype("float32")


def built(layer, x):
    layer(x)
    return randomized(layer)


@pytest.mark.parametrize("rate", [(1, 1), (5, 5), (1, 3)])
@pytest.mark.parametrize("kernel_size", [(3, 3), (1, 5)])
def test_is_an_ordinary_convolution_with_a_zero_stuffed_kernel(rate, kernel_size):
    x = picture(9, 7)
    layer = built(AtrousConv2D(4, kernel_size, dilation_rate=rate), x)
    kernel = zero_stuffed(layer.conv.kernel.numpy(), rate)
    pad = tuple(n // 2 for n in kernel.shape[:2])
    expected = relu(normalized(convolve(x, kernel, pad), layer.norm))
    np.testing.assert_allclose(layer(x), expected, rtol=1e-4, atol=1e-4)


def test_without_batch_norm_it_has_a_bias():
    x = picture(6, 5)
    layer = built(AtrousConv2D(4, 3, batch_norm=False, activation=None), x)
    kernel, bias = layer.get_weights()
    np.testing.assert_allclose(layer(x), convolve(x, kernel, (1, 1)) + bias, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(12, 11), (13, 14), (1, 2)])
@pytest.mark.parametrize("kernel_size, stride", [(3, 2), (5, 3)])
def test_strided_pads_both_sides_alike(size, stride, kernel_size):
    x = picture(*size)
    layer = built(AtrousConv2D(4, kernel_size, strides=stride), x)
    kernel, pad = layer.conv.kernel.numpy(), (kernel_size // 2,) * 2
    strided = relu(normalized(convolve(x, kernel, pad, stride), layer.norm))
    np.testing.assert_allclose(layer(x), strided, rtol=1e-4, atol=1e-4)
    # The samples are those of the stride-free convolution at the pixels 0, stride, 2 * stride ...
    dense = relu(normalized(convolve(x, kernel, pad), layer.norm))
    np.testing.assert_allclose(layer(x), dense[:, ::stride, ::stride], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rate, between", [(1, True), (3, False)])
def test_separable_is_depthwise_then_1x1(rate, between):
    x = picture(8, 9)
    layer = built(AtrousSeparableConv2D(5, 3, dilation_rate=rate, depthwise_activation=between), x)
    depthwise = depthwise_as_full(zero_stuffed(layer.depthwise.kernel.numpy(), (rate, rate)))
    y = normalized(convolve(x, depthwise, (rate, rate)), layer.depthwise_norm)
    y = relu(y) if between else y
    y = convolve(y, layer.pointwise.kernel.numpy(), (0, 0))
    expected = relu(normalized(y, layer.pointwise_norm))
    np.testing.assert_allclose(layer(x), expected, rtol=1e-4, atol=1e-4)


def test_separable_strided_samples_the_stride_free_map():
    x = picture(11, 12)
    strided = built(AtrousSeparableConv2D(5, 5, strides=2), x)
    dense = AtrousSeparableConv2D(5, 5)
    dense(x)
    dense.set_weights(strided.get_weights())
    np.testing.assert_allclose(strided(x), dense(x)[:, ::2, ::2], rtol=1e-4, atol=1e-4)


def test_separable_without_batch_norm_has_two_biases():
    layer = AtrousSeparableConv2D(5, 3, batch_norm=False)
    layer(picture(4, 4))
    assert [w.name for w in layer.weights].count("bias") == 2


@pytest.mark.parametrize("layer_class", [AtrousConv2D, AtrousSeparableConv2D])
def test_layers_that_share_an_initializer_start_differently(layer_class):
    initializer = keras.initializers.HeNormal()
    first, second = (layer_class(4, kernel_initializer=initializer) for _ in range(2))
    for layer in (first, second):
        layer(picture(4, 4))
    for a, b in zip(first.weights, second.weights, strict=True):
        assert a.name != "kernel" or np.abs(a.numpy() - b.numpy()).max() > 0.1


def test_dilated_config_gives_a_finer_map_of_the_same_weights():
    x = picture(12, 12)
    strided = built(AtrousConv2D(4, 3, strides=2), x)
    fine = AtrousConv2D.from_config(strided.dilated_config((1, 1)))
    fine(x)
    fine.set_weights(strided.get_weights())
    np.testing.assert_allclose(fine(x)[:, ::2, ::2], strided(x), rtol=1e-4, atol=1e-4)
    assert AtrousConv2D(4, 1).dilated_config((4, 4))["dilation_rate"] == (1, 1)
    assert AtrousConv2D(4, (1, 3), dilation_rate=2).dilated_config((4, 4))["dilation_rate"] == (
        1,
        8,
    )
