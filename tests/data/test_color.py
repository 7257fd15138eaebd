from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from keras_deeplab.data.color import CHANGES, jitter_strengths, random_color

GREY = np.array([0.299, 0.587, 0.114])


def photograph(low=0.0, high=255.0):
    return np.random.default_rng(0).uniform(low, high, (6, 7, 3)).astype(np.float32)


def changed(image, number=0, **strengths):
    return random_color(
        tf.constant(image), tf.constant([number, 4]), jitter_strengths(strengths)
    ).numpy()


def draws_of(number):
    return tf.random.stateless_uniform((7,), [number, 4], -1.0, 1.0).numpy().astype(float)


def test_all_changes_against_numpy():
    strengths = {
        "brightness": 0.1,
        "contrast": 0.2,
        "saturation": 0.3,
        "gamma": 0.5,
        "white_balance": 0.15,
    }
    image = photograph(60, 160)
    for number in range(5):
        draws = draws_of(number)
        factors = 1 + np.array([0.1, 0.2, 0.3]) * draws[:3]
        expected = image * (1 + 0.15 * draws[4:]) * factors[0]
        expected = 255 * (np.clip(expected, 0, 255) / 255) ** (1.5 ** draws[3])
        mean = (expected @ GREY).mean()
        expected = mean + (expected - mean) * factors[1]
        grey = (expected @ GREY)[..., None]
        expected = np.clip(grey + (expected - grey) * factors[2], 0, 255)
        np.testing.assert_allclose(changed(image, number, **strengths), expected, atol=2e-3)


def test_three_and_one_numbers_mean_brightness_contrast_saturation():
    image = photograph()
    named = {"brightness": 0.1, "contrast": 0.2, "saturation": 0.3}
    assert jitter_strengths((0.1, 0.2, 0.3)) == jitter_strengths(named)
    assert jitter_strengths(0.2) == jitter_strengths(dict.fromkeys(named, 0.2))
    assert set(jitter_strengths({})) == set(CHANGES)
    assert jitter_strengths(None) is None
    np.testing.assert_allclose(changed(image), image, atol=1e-3)


def test_gamma_keeps_black_and_white_and_goes_both_ways():
    image = np.array([0.0, 64.0, 255.0], np.float32)[None, :, None].repeat(3, -1)
    greys = []
    for number in range(200):
        result = changed(image, number, gamma=1.0)
        np.testing.assert_allclose(result[0, [0, 2]], image[0, [0, 2]], atol=1e-3)
        greys.append(result[0, 1, 0])
    low, high = 255 * (64 / 255) ** 2, 255 * (64 / 255) ** 0.5
    assert low - 0.01 < min(greys) < low + 2
    assert high - 4 < max(greys) < high + 0.01
    assert 0.4 < np.mean(np.array(greys) < 64) < 0.6  # darker as often as lighter


def test_white_balance_multiplies_channels_apart():
    image = photograph(20, 180)
    factors = []
    for number in range(200):
        ratio = changed(image, number, white_balance=0.3) / image
        # One factor in each channel, the same at all pixels.
        assert np.ptp(ratio, axis=(0, 1)).max() < 1e-4
        factors.append(ratio[0, 0])
    factors = np.array(factors)
    assert 0.7 < factors.min() < 0.71
    assert 1.29 < factors.max() < 1.3 + 1e-4
    assert np.abs(np.corrcoef(factors.T) - np.eye(3)).max() < 0.25


@pytest.mark.parametrize("name", CHANGES)
def test_full_strength_stays_in_range(name):
    for number in range(20):
        result = changed(photograph(), number, **{name: 1.0})
        assert np.isfinite(result).all()
        assert result.min() >= 0
        assert result.max() <= 255.0001
