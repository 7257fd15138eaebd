from __future__ import annotations

import numpy as np
import pytest
from layer_checks import convolve, depthwise_as_full, normalized, randomized, relu, zero_stuffed

from keras_deeplab.layers import ASPP, AtrousConv2D, ImagePooling


def by_hand(x: np.ndarray, layer: AtrousConv2D, rate: int = 1) -> np.ndarray:
    """Convolution, batch norm and ReLU of an AtrousConv2D's weights."""
    kernel = zero_stuffed(layer.conv.kernel.numpy(), (rate, rate))
    return relu(normalized(convolve(x, kernel, (kernel.shape[0] // 2,) * 2), layer.norm))


def separable_by_hand(x: np.ndarray, layer, rate: int) -> np.ndarray:
    kernel = depthwise_as_full(zero_stuffed(layer.depthwise.kernel.numpy(), (rate, rate)))
    y = relu(normalized(convolve(x, kernel, (rate, rate)), layer.depthwise_norm))
    y = convolve(y, layer.pointwise.kernel.numpy(), (0, 0))
    return relu(normalized(y, layer.pointwise_norm))


def pooled_by_hand(x: np.ndarray, layer: ImagePooling) -> np.ndarray:
    vector = by_hand(x.mean(axis=(1, 2), keepdims=True), layer.conv)
    return np.broadcast_to(vector, (*x.shape[:3], vector.shape[-1]))


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, 9, 6, 3)).astype("float32")


@pytest.mark.parametrize("separable, image_pooling", [(False, True), (True, False)])
def test_is_its_branches_side_by_side_and_a_projection(x, separable, image_pooling):
    rates = (1, 2, 5)
    layer = ASPP(4, rates, separable=separable, image_pooling=image_pooling)
    layer(x)
    randomized(layer)
    first, *atrous = layer.branches
    parts = [by_hand(x, first)]
    branch_by_hand = separable_by_hand if separable else by_hand
    parts += [branch_by_hand(x, b, r) for b, r in zip(atrous, rates, strict=False)]
    if image_pooling:
        parts.append(pooled_by_hand(x, layer.branches[-1]))
    assert len(layer.branches) == len(parts)
    expected = by_hand(np.concatenate(parts, axis=-1), layer.project)
    np.testing.assert_allclose(layer(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("separable, count", [(False, 15_538_176), (True, 3_035_136)])
def test_parameters_at_the_published_size(separable, count):
    """2048 channels in, 256 filters, three rates; four numbers per channel of each batch norm."""
    layer = ASPP(256, separable=separable)
    layer.build((None, None, None, 2048))
    assert layer.count_params() == count


def test_dropout_only_in_training(x):
    layer = ASPP(64, (1,), dropout=0.5)
    layer(x)
    np.testing.assert_array_equal(layer(x), layer(x))
    dropped = np.asarray(layer.drop(np.ones((1, 50, 50, 8), "float32"), training=True)) == 0
    assert 0.45 < dropped.mean() < 0.55
    assert np.any(layer(x, training=True) != layer(x, training=True))


def test_dilated_config_multiplies_the_rates():
    config = ASPP(4, (1, (2, 3))).dilated_config((2, 4))
    assert config["rates"] == ((2, 4), (4, 12))
    fine = ASPP.from_config(config)
    assert [b.dilation_rate for b in fine.branches[1:3]] == [(2, 4), (4, 12)]
    assert (
        ImagePooling(4, name="p").dilated_config((2, 2)) == ImagePooling(4, name="p").get_config()
    )
