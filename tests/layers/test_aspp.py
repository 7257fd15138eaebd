from __future__ import annotations

import numpy as np
import pytest
from layer_checks import conv_by_hand, picture, randomized, separable_by_hand

from keras_deeplab.graph.network import all_norms
from keras_deeplab.layers import ASPP, ImagePooling


@pytest.mark.parametrize("separable, image_pooling", [(False, True), (True, False)])
def test_is_its_branches_side_by_side_and_a_projection(separable, image_pooling):
    x, rates = picture(9, 6), (1, 2, 5)
    layer = ASPP(4, rates, separable=separable, image_pooling=image_pooling)
    layer(x)
    randomized(layer)
    first, *atrous = layer.branches
    parts = [conv_by_hand(x, first)]
    for branch, rate in zip(atrous, rates, strict=False):
        by_hand = separable_by_hand if separable else conv_by_hand
        parts.append(by_hand(x, branch, rate if separable else (rate, rate)))
    if image_pooling:
        vector = conv_by_hand(x.mean(axis=(1, 2), keepdims=True), layer.branches[-1].conv)
        parts.append(np.broadcast_to(vector, (*x.shape[:3], vector.shape[-1])))
    assert len(layer.branches) == len(parts)
    expected = conv_by_hand(np.concatenate(parts, axis=-1), layer.project)
    np.testing.assert_allclose(layer(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("separable, count", [(False, 4), (True, 5)])
def test_every_norm_has_the_epsilon_and_momentum_given(separable, count):
    layer = ASPP(4, (1,), separable=separable, epsilon=0.25, momentum=0.75)
    norms = all_norms(layer).values()
    assert [(norm.epsilon, norm.momentum) for norm in norms] == [(0.25, 0.75)] * count


@pytest.mark.parametrize("separable, count", [(False, 15_538_176), (True, 3_035_136)])
def test_parameters_at_the_published_size(separable, count):
    """2048 channels in, 256 filters, three rates; four numbers per channel of each batch norm."""
    layer = ASPP(256, separable=separable)
    layer.build((None, None, None, 2048))
    assert layer.count_params() == count


def test_dropout_only_in_training():
    x, layer = picture(9, 6), ASPP(64, (1,), dropout=0.5)
    np.testing.assert_array_equal(layer(x), layer(x))
    dropped = np.asarray(layer.drop(np.ones((1, 50, 50, 8), "float32"), training=True)) == 0
    assert 0.45 < dropped.mean() < 0.55
    assert np.any(layer(x, training=True) != layer(x, training=True))


def test_dilated_config_multiplies_the_rates():
    config = ASPP(4, (1, (2, 3))).dilated_config((2, 4))
    fine = ASPP.from_config(config)
    assert [b.dilation_rate for b in fine.branches[1:3]] == [(2, 4), (4, 12)]
    pooling = ImagePooling(4, name="p")
    assert pooling.dilated_config((2, 2)) == pooling.get_config()
