from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from keras_deeplab import data
from keras_deeplab.data.augment import random_color, random_pad, random_scaled_crop


def regions(height, width, side=24):
    """Smooth regions with values that an interpolated label would not have (0, 40, 80, ...)."""
    rng = np.random.default_rng(5)
    cells = rng.integers(0, 6, (-(-height // side), -(-width // side))) * 40
    return np.kron(cells, np.ones((side, side)))[:height, :width].astype(np.uint8)


run = tf.function(data.augment)


def augmented(image, label, number, **arguments):
    tensors = tf.constant(image), tf.constant(label), tf.constant([number, 7])
    return [tensor.numpy() for tensor in run(*tensors, **arguments)]


@pytest.mark.parametrize("size", [(90, 130), (40, 200), (64, 64), (1, 1)])
def test_labels_are_never_new_and_stay_on_their_pixels(size):
    label = regions(*size)
    image = np.repeat(label[..., None], 3, -1)
    wrong = total = 0
    for number in range(25):
        picture, result = augmented(image, label, number, crop_size=(64, 80), color_jitter=None)
        assert set(np.unique(result)) <= {*np.unique(label), 255}
        padding = result == 255
        np.testing.assert_array_equal(picture[padding], 127.5)
        # Where a label's neighbours agree, no interpolation can have changed the pixel.
        high = tf.nn.max_pool2d(picture[None], 5, 1, "SAME")[0]
        low = -tf.nn.max_pool2d(-picture[None], 5, 1, "SAME")[0]
        flat = (high - low).numpy().max(-1) < 0.1
        inside = flat & ~padding
        wrong += (np.abs(picture[..., 0] - result) > 0.1)[inside].sum()
        total += (~padding).sum()
        # At edges the two may differ by the part of a pixel that scaling shifts, not more.
        near = np.abs(picture[..., 0] - result)[~padding]
        assert (near > 100).mean() < 0.15
    assert total > 0
    assert wrong == 0


def centre_of(mask):
    return np.array([axis.mean() for axis in np.nonzero(mask)])


def test_scaled_edges_of_image_and_label_agree_below_a_pixel():
    label = np.zeros((120, 120), np.uint8)
    label[37:81, 29:90] = 200
    image = np.repeat(label[..., None], 3, -1)
    for number in range(20):
        picture, result = augmented(
            image, label, number, crop_size=(240, 240), color_jitter=None, scales=(0.5, 2.0)
        )
        assert np.abs(centre_of(result == 200) - centre_of(picture[..., 0] > 150)).max() < 0.6


def test_scale_range_is_used_whole():
    label = np.zeros((50, 60), np.uint8)
    image = np.zeros((50, 60, 3), np.uint8)
    areas = []
    for number in range(60):
        _, result = augmented(image, label, number, crop_size=(120, 130))
        areas.append((result != 255).sum() / label.size)
    scales = np.sqrt(areas)
    assert 0.48 < scales.min() < 0.65
    assert 1.85 < scales.max() < 2.03


def test_window_fills_the_crop_where_the_image_allows():
    label, image = tf.zeros((97, 131), tf.uint8), tf.zeros((97, 131, 3))
    for number in range(40):
        _, result = random_scaled_crop(image, label, tf.constant([number, 0]), (48, 48), (0.5, 2.0))
        assert result.shape == (48, 48)


def test_flip_mirrors_half_of_the_time():
    label = np.array([[0, 1, 2, 3]], np.uint8)
    image = np.repeat(label[..., None], 3, -1)
    flips = 0
    for number in range(60):
        picture, result = augmented(
            image, label, number, crop_size=(1, 4), scales=(1, 1), color_jitter=None
        )
        np.testing.assert_array_equal(picture[..., 0], result)
        assert result.tolist() in ([[0, 1, 2, 3]], [[3, 2, 1, 0]])
        flips += result[0, 0] == 3
    assert 15 < flips < 45
    unflipped = augmented(image, label, 0, crop_size=(1, 4), scales=(1, 1), flip=False)
    assert unflipped[1].tolist() == [[0, 1, 2, 3]]


def test_crops_reach_every_corner():
    label = np.arange(100, dtype=np.uint8).reshape(10, 10)
    image = np.repeat(label[..., None], 3, -1)
    corners = {
        int(augmented(image, label, n, crop_size=(8, 8), scales=(1, 1), flip=False)[1][0, 0])
        for n in range(80)
    }
    assert corners == {10 * row + column for row in range(3) for column in range(3)}


def test_colour_against_numpy():
    image = np.random.default_rng(0).uniform(60, 180, (6, 7, 3)).astype(np.float32)
    seed = tf.constant([3, 4])
    draws = tf.random.stateless_uniform((3,), seed, -1.0, 1.0).numpy()
    brightness, contrast, saturation = 1 + np.array([0.1, 0.2, 0.3]) * draws
    expected = image * brightness
    mean = (expected @ [0.299, 0.587, 0.114]).mean()
    expected = mean + (expected - mean) * contrast
    grey = (expected @ [0.299, 0.587, 0.114])[..., None]
    expected = np.clip(grey + (expected - grey) * saturation, 0, 255)
    result = random_color(tf.constant(image), seed, (0.1, 0.2, 0.3))
    np.testing.assert_allclose(result, expected, atol=1e-3)
    np.testing.assert_allclose(
        random_color(tf.constant(image), seed, (0.0, 0.0, 0.0)), image, atol=1e-3
    )


def test_padding_goes_to_a_random_place():
    image, label = tf.zeros((2, 3, 3)), tf.zeros((2, 3), tf.uint8)
    places = set()
    for number in range(40):
        picture, result = random_pad(image, label, tf.constant([number, 1]), (4, 4))
        rows, columns = np.nonzero(result.numpy() == 0)
        assert len(rows) == 6
        assert (picture.numpy()[rows, columns] == 0).all()
        places.add((int(rows.min()), int(columns.min())))
    assert places == {(row, column) for row in range(3) for column in range(2)}
