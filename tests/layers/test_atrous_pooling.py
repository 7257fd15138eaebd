from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from layer_checks import convolve, zero_stuffed

from keras_deeplab.layers import AtrousPadding2D, AtrousPooling2D

SIZES = [(8, 8), (5, 7)]
KERAS_OWN = {"max": keras.layers.MaxPooling2D, "average": keras.layers.AveragePooling2D}


def picture(height: int, width: int) -> np.ndarray:
    # All negative, so that a zero from the padding would win every maximum.
    return -np.random.default_rng(0).uniform(1, 2, (2, height, width, 3)).astype("float32")


def by_loops(x: np.ndarray, pool, rate, pads, mode: str) -> np.ndarray:
    """Maximum or mean over the taps of each window that fall on the map."""
    padded = np.pad(x, ((0, 0), *pads, (0, 0)), constant_values=np.nan)
    sides = [n - r * (k - 1) for n, r, k in zip(padded.shape[1:3], rate, pool, strict=True)]
    reduce = np.nanmax if mode == "max" else np.nanmean
    y = np.zeros((x.shape[0], *sides, x.shape[3]), np.float32)
    for i, j in np.ndindex(*sides):
        rows = slice(i, i + rate[0] * (pool[0] - 1) + 1, rate[0])
        columns = slice(j, j + rate[1] * (pool[1] - 1) + 1, rate[1])
        y[:, i, j] = reduce(padded[:, rows, columns], axis=(1, 2))
    return y


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["max", "average"])
@pytest.mark.parametrize("pool, rate", [((3, 3), (1, 1)), ((3, 3), (2, 2)), ((2, 3), (3, 1))])
def test_against_loops(size, mode, pool, rate):
    x = picture(*size)
    total = [r * (n - 1) for n, r in zip(pool, rate, strict=True)]
    paddings = {
        "same": tuple((n // 2, n - n // 2) for n in total),
        "valid": ((0, 0), (0, 0)),
        ((total[0], 0), (0, 1)): ((total[0], 0), (0, 1)),
    }
    for padding, pads in paddings.items():
        output = AtrousPooling2D(pool, mode, rate, padding)(x)
        expected = by_loops(x, pool, rate, pads, mode)
        np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["max", "average"])
@pytest.mark.parametrize("rate", [1, 3])
@pytest.mark.parametrize("pool, stride", [(2, 2), (3, 2), (3, 3), (3, 4)])
def test_holds_the_values_of_the_strided_pooling_it_replaces(size, mode, rate, pool, stride):
    """On a map `rate` times finer, whose every `rate`-th sample is the coarse map's."""
    x = picture(size[0] * rate, size[1] * rate)
    strides = {"source_strides": (stride, stride)}
    fine = AtrousPooling2D((pool, pool), mode, (rate, rate), "same", **strides)(x)
    assert fine.shape == x.shape
    coarse = KERAS_OWN[mode](pool, stride, padding="same")(x[:, ::rate, ::rate])
    step = rate * stride
    np.testing.assert_allclose(fine[:, ::step, ::step], coarse, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["max", "average"])
def test_the_axes_have_strides_of_their_own(mode):
    x, pool, strides = picture(8, 9), (3, 4), (2, 3)
    fine = AtrousPooling2D(pool, mode, source_strides=strides)(x)
    coarse = KERAS_OWN[mode](pool, strides, padding="same")(x)
    np.testing.assert_allclose(fine[:, ::2, ::3], coarse, rtol=1e-5, atol=1e-6)


def test_no_window_is_inside_the_padding():
    assert AtrousPooling2D((1, 3), padding=((0, 0), (2, 2)))(picture(5, 7)).shape == (2, 5, 9, 3)
    for padding in (((2, 0), (0, 1)), ((0, 3), (0, 0))):
        with pytest.raises(ValueError, match="`padding` must be .* each below the window"):
            AtrousPooling2D((3, 1), padding=padding)


@pytest.mark.parametrize("size", [*SIZES, (1, 2)])
@pytest.mark.parametrize("rate", [1, 3])
@pytest.mark.parametrize("kernel_size, stride", [(3, 2), (2, 2), (5, 3), (4, 2), (3, 4)])
def test_padding_starts_where_the_strided_convolution_started(size, rate, kernel_size, stride):
    x = picture(size[0] * rate, size[1] * rate)
    strided = keras.layers.Conv2D(2, kernel_size, stride, padding="same", use_bias=False)
    coarse = strided(x[:, ::rate, ::rate])
    pad = AtrousPadding2D((kernel_size,) * 2, (stride,) * 2, (rate,) * 2)
    fine = convolve(pad(x).numpy(), zero_stuffed(strided.kernel.numpy(), (rate, rate)), (0, 0))
    assert fine.shape[1:3] == x.shape[1:3]
    step = rate * stride
    np.testing.assert_allclose(fine[:, ::step, ::step], coarse, rtol=1e-4, atol=1e-5)
    traced = tf.function(pad, input_signature=[tf.TensorSpec((None, None, None, 3))])
    np.testing.assert_array_equal(traced(x), pad(x))
