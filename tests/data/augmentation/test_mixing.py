from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from keras_deeplab.data.augmentation.mixing import keep_classes, mosaic, paste, random_cutout


def mosaic_of_numbers(seed, size):
    def tile(number, of):
        tile_sizes.append(tuple(of.numpy()))
        return tf.fill([*of, 3], float(number)), tf.fill(of, tf.constant(number, tf.uint8))

    tile_sizes = []
    image, label = mosaic(tile, tf.constant([seed, 1]), size)
    return image.numpy(), label.numpy(), tile_sizes


def test_a_mosaic_has_four_tiles_around_a_point_in_the_middle():
    points = []
    for seed in range(40):
        image, label, sizes = mosaic_of_numbers(seed, (40, 60))
        top, left = sizes[0]
        assert sizes == [(top, left), (top, 60 - left), (40 - top, left), (40 - top, 60 - left)]
        expected = np.kron([[0, 1], [2, 3]], np.ones((40, 60), int))
        expected = expected[40 - top : 80 - top, 60 - left : 120 - left]
        np.testing.assert_array_equal(label, expected)
        np.testing.assert_array_equal(image, expected[..., None].repeat(3, -1))
        points.append(sizes[0])
    rows, columns = zip(*points, strict=True)
    assert 10 <= min(rows) < 13 <= 27 < max(rows) < 30
    assert 15 <= min(columns) < 18 <= 41 < max(columns) < 45


@pytest.mark.parametrize("size", [(2, 2), (3, 2), (5, 3)])
def test_a_small_mosaic_has_four_tiles_too(size):
    for seed in range(8):
        image, label, _ = mosaic_of_numbers(seed, size)
        assert label.shape == image.shape[:2] == size
        assert set(np.unique(label)) == {0, 1, 2, 3}


def test_pasted_pixels_are_those_of_the_classes():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 6, (2, 9, 8)).astype(np.uint8)
    labels[labels == 5] = 255
    images = rng.uniform(0, 255, (2, 9, 8, 3)).astype(np.float32)
    image, label = paste(images[0], labels[0], (images[1], labels[1]), [1, 4])
    pasted = np.isin(labels[1], [1, 4])
    np.testing.assert_array_equal(label, np.where(pasted, labels[1], labels[0]))
    np.testing.assert_array_equal(image, np.where(pasted[..., None], images[1], images[0]))
    np.testing.assert_array_equal(keep_classes(labels[1], [1, 4]), np.where(pasted, labels[1], 255))


@pytest.mark.slow
def test_cutout_is_a_grey_rectangle_that_is_ignored():
    image, label = tf.zeros((50, 80, 3)), tf.zeros((50, 80), tf.uint8)
    shares, aspects, edges = [], [], np.zeros(4, int)
    for seed in range(150):
        found, result = random_cutout(image, label, tf.constant([seed, 1]), 0.3)
        cut = result.numpy() == 255
        np.testing.assert_array_equal(found, np.where(cut, 127.5, 0.0)[..., None].repeat(3, -1))
        rows, columns = np.flatnonzero(cut.any(1)), np.flatnonzero(cut.any(0))
        assert cut.sum() == len(rows) * len(columns)
        shares.append(cut.mean())
        if len(rows) > 10:
            aspects.append(len(rows) / len(columns))
            edges += [rows[0] == 0, rows[-1] == 49, columns[0] == 0, columns[-1] == 79]
    assert 0 <= min(shares) < 0.01
    assert 0.28 < max(shares) < 0.305
    assert np.mean(shares) == pytest.approx(0.15, abs=0.02)
    assert 0.45 < min(aspects) < 0.6
    assert 1.7 < max(aspects) < 2.2
    assert edges.min() > 0  # it reaches all sides


def test_cutout_never_leaves_a_small_image():
    for seed in range(10):
        _, result = random_cutout(
            tf.zeros((1, 5, 1)), tf.zeros((1, 5), tf.uint8), tf.constant([seed, 0]), 1.0
        )
        assert result.shape == (1, 5)
