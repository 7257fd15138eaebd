from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import tensorflow as tf

from keras_deeplab.data.augmentation.color import (
    CHANGES,
    jitter_strengths,
    random_blur,
    random_color,
    random_jpeg,
)

GREY = np.array([0.299, 0.587, 0.114])


def photograph(low=0.0, high=255.0):
    return np.random.default_rng(0).uniform(low, high, (6, 7, 3)).astype(np.float32)


@cache
def color_graph(**strengths):
    def change(image, seed):
        return random_color(image, seed, jitter_strengths(strengths))

    return tf.function(change, autograph=False)


def changed(image, number=0, **strengths):
    return color_graph(**strengths)(tf.constant(image), tf.constant([number, 4])).numpy()


@pytest.mark.parametrize("contrast, interval", [(0.2, (60, 160)), (0.9, (0, 255))])
def test_all_changes_against_numpy(contrast, interval):
    strengths = {"brightness": 0.1, "contrast": contrast, "saturation": 0.3}
    strengths |= {"gamma": 0.5, "white_balance": 0.15}
    image = photograph(*interval)
    for number in range(5):
        draws = tf.random.stateless_uniform((7,), [number, 4], -1.0, 1.0).numpy().astype(float)
        factors = 1 + np.array([0.1, contrast, 0.3]) * draws[:3]
        expected = image * (1 + 0.15 * draws[4:]) * factors[0]
        expected = 255 * (np.clip(expected, 0, 255) / 255) ** (1.5 ** draws[3])
        mean = (expected @ GREY).mean()
        expected = mean + (expected - mean) * factors[1]
        expected, grey = (np.clip(x, 0, 255) for x in (expected, (expected @ GREY)[..., None]))
        expected = np.clip(grey + (expected - grey) * factors[2], 0, 255)
        np.testing.assert_allclose(changed(image, number, **strengths), expected, atol=2e-3)


def test_a_number_means_brightness_contrast_and_saturation():
    named = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2}
    assert jitter_strengths(0.2) == jitter_strengths(named)
    assert set(jitter_strengths({})) == set(CHANGES)
    assert jitter_strengths(None) is None
    np.testing.assert_allclose(changed(photograph()), photograph(), atol=1e-3)


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


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_images_of_any_number_of_channels(channels):
    image = photograph(60, 160)[..., :1].repeat(channels, -1) + 10 * np.arange(channels)
    result = changed(image.astype(np.float32), saturation=1.0)
    np.testing.assert_allclose(result.mean(-1), image.mean(-1), rtol=1e-5)  # the grey is kept
    assert (np.abs(result - image).max() > 0.1) == (channels > 1)
    white = changed(image.astype(np.float32), white_balance=0.3) / image
    assert len(np.unique(white[0, 0].round(5))) == channels


# Blur and JPEG.


@pytest.mark.parametrize("sigma", [0.0, 0.7, 3.0])
@pytest.mark.parametrize("channels", [1, 3])
def test_blur_against_numpy(sigma, channels):
    image = np.random.default_rng(1).uniform(0, 255, (24, 31, channels)).astype(np.float32)
    found = random_blur(tf.constant(image), tf.constant([1, 2]), (sigma, sigma)).numpy()
    radius = int(np.ceil(3 * sigma))
    distance = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (distance / max(sigma, 1e-9)) ** 2)
    kernel /= kernel.sum()
    expected = np.pad(image, ((radius, radius), (radius, radius), (0, 0)), "symmetric")
    for axis in (0, 1):
        expected = np.apply_along_axis(np.convolve, axis, expected, kernel, "valid")
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_blur_uses_its_range_and_takes_small_images():
    image = np.zeros((41, 41, 1), np.float32)
    image[20, 20] = 255.0
    widths = []
    for number in range(60):
        found = random_blur(tf.constant(image), tf.constant([number, 0]), (0.5, 3.0)).numpy()
        share = found[..., 0].sum(0) / found.sum()
        widths.append(np.sqrt((share * (np.arange(41) - 20) ** 2).sum()))
    assert 0.4 < min(widths) < 0.7
    assert 2.7 < max(widths) < 3.0
    assert random_blur(tf.ones((1, 2, 3)), tf.constant([0, 0]), (9.0, 9.0)).shape == (1, 2, 3)


def test_jpeg_noise_grows_as_the_quality_falls():
    smooth = np.linspace(0, 255, 32 * 40 * 3).reshape(32, 40, 3) ** 0.9
    image = smooth + photograph(-9, 9).repeat(6, 0)[:32].repeat(6, 1)[:, :40]
    image = tf.constant(np.clip(image, 0, 255), tf.float32)

    def noise(low, high, number=0):
        found = random_jpeg(image, tf.constant([number, 0]), (low, high))
        assert found.shape == image.shape
        assert 0 <= tf.reduce_min(found) <= tf.reduce_max(found) <= 255
        return float(tf.reduce_mean(tf.abs(found - image)))

    assert noise(100, 100) < noise(50, 50) < noise(5, 5)
    assert noise(100, 100) < 1.5
    quality = {noise(number, number): number for number in range(70, 91)}
    drawn = [quality[noise(70, 90, number)] for number in range(40)]
    assert 70 <= min(drawn) < 74
    assert 86 < max(drawn) <= 90
    assert {quality[noise(70, 71, number)] for number in range(12)} == {70, 71}
    assert random_jpeg(image[..., :1], tf.constant([0, 0]), (9, 9)).shape == (32, 40, 1)
