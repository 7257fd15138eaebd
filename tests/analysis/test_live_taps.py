"""Live kernel taps against counting them in the network itself."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers as kl

import keras_deeplab as kd
from keras_deeplab.analysis import live_taps
from keras_deeplab.graph.features import tensor_of


def brute_force(layer, size):
    """The live taps at each output position: a kernel of ones over a map of ones."""
    config = {**layer.get_config(), "filters": 1, "kernel_initializer": "ones"}
    ones = kl.Conv2D.from_config(config)
    return np.rint(ones(np.ones((1, *size, 1), "float32")).numpy()).astype(int)


@pytest.mark.parametrize("size", [(9, 14), (33, 20), (5, 5)])
@pytest.mark.parametrize("rate", [(2, 2), (3, 5), (12, 12)])
def test_against_a_map_of_ones(size, rate):
    inputs = keras.Input((None, None, 2))
    x = kl.Conv2D(3, 3, padding="same", name="plain")(inputs)
    x = kl.Conv2D(4, (3, 5), dilation_rate=rate, padding="same", name="atrous")(x)
    (found,) = live_taps(keras.Model(inputs, x), *size)
    assert (found.name, found.kernel, found.rate, found.map_size) == ("atrous", (3, 5), rate, size)
    counts = brute_force(keras.Model(inputs, x).get_layer("atrous"), size)
    values, numbers = np.unique(counts, return_counts=True)
    assert found.positions == pytest.approx(dict(zip(values, numbers / counts.size, strict=True)))
    assert found.share == pytest.approx(counts.mean() / 15)


def test_padding_by_a_layer_is_padding():
    inputs = keras.Input((None, None, 1))
    x = kl.ZeroPadding2D(((4, 4), (4, 4)))(inputs)
    valid = keras.Model(inputs, kl.Conv2D(1, 3, dilation_rate=4)(x))
    same = keras.Model(inputs, kl.Conv2D(1, 3, dilation_rate=4, padding="same")(inputs))
    (one,), (other,) = live_taps(valid, 11, 13), live_taps(same, 11, 13)
    assert one.positions == other.positions
    assert one.map_size == other.map_size == (11, 13)


def test_figure_4_of_the_paper():
    """A rate of 65 on a map of 65x65: a 3x3 kernel is a 1x1 kernel."""
    inputs = keras.Input((65, 65, 1))

    def taps(rate):
        atrous = kl.Conv2D(1, 3, dilation_rate=rate, padding="same")
        return live_taps(keras.Model(inputs, atrous(inputs)), 65, 65)

    assert taps(65)[0].positions == {1: 1.0}
    assert taps(1) == ()
    for rate in (2, 10, 20, 30, 33):
        expected = ((65 - 2 * rate) / 65) ** 2 if rate < 33 else 0
        assert taps(rate)[0].positions.get(9, 0.0) == pytest.approx(expected)


@pytest.mark.slow
def test_of_a_model():
    model = kd.DeepLabV3(21, "resnet50")
    found = {one.name: one for one in live_taps(model, 513, 513)}
    rates = [found[f"aspp/atrous_{k}/conv"].rate for k in range(3)]
    assert rates == [(6, 6), (12, 12), (18, 18)]
    for k, rate in enumerate((6, 12, 18)):  # a third of the taps is always there
        expected = ((33 + 2 * max(0, 33 - rate)) / 99) ** 2
        assert found[f"aspp/atrous_{k}/conv"].share == pytest.approx(expected)
    assert tensor_of(model, "aspp").shape[-1] == 256


def test_counts_of_a_large_map_take_no_memory_for_its_positions():
    inputs = keras.Input((None, None, 1))
    x = keras.layers.Conv2D(1, 3, dilation_rate=5000, padding="same")(inputs)
    (taps,) = live_taps(keras.Model(inputs, x), 9999, 9999)
    # On 1 of 9999 positions of an axis both outer taps are in the padding, on the others one is.
    assert taps.positions == pytest.approx(
        {1: 9999.0**-2, 2: 2 * 9998 / 9999**2, 4: (9998 / 9999) ** 2}
    )
