from __future__ import annotations

import keras
import numpy as np
import pytest

from keras_deeplab.graph import geometry
from keras_deeplab.layers import ReverseChannels


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_are_reversed_and_nothing_else(channels):
    x = np.random.default_rng(0).normal(size=(2, 5, 4, channels)).astype("float32")
    layer = ReverseChannels()
    np.testing.assert_array_equal(layer(x), x[..., ::-1])
    np.testing.assert_array_equal(layer(layer(x)), x)


def test_every_pixel_stays_where_it_is():
    inputs = keras.Input((None, None, 3))
    found = geometry(keras.Model(inputs, ReverseChannels()(inputs)), 7, 9).output
    assert (found.stride, found.receptive_field) == ((1, 1), (1, 1))
    assert (found.offset, found.size) == ((0, 0), (7, 9))
