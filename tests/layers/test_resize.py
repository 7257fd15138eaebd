from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from layer_checks import picture

from keras_deeplab.layers import CropLike, PadToMinimum, ResizeBy, ResizeLike


def bilinear(x: np.ndarray, size: tuple[int, int], corners: bool = False) -> np.ndarray:
    """Half-pixel centres, the border repeated, or corners aligned: loops over the output pixels."""

    def source(index: int, size: int, target: int) -> float:
        if corners:
            return index * (size - 1) / max(1, target - 1)
        return min(max((index + 0.5) * size / target - 0.5, 0), size - 1)

    y = np.zeros((x.shape[0], *size, x.shape[3]))
    for i, j in np.ndindex(*size):
        row, column = source(i, x.shape[1], size[0]), source(j, x.shape[2], size[1])
        top, left = int(row), int(column)
        bottom, right = min(top + 1, x.shape[1] - 1), min(left + 1, x.shape[2] - 1)
        a, b = row - top, column - left
        y[:, i, j] = (1 - a) * ((1 - b) * x[:, top, left] + b * x[:, top, right]) + a * (
            (1 - b) * x[:, bottom, left] + b * x[:, bottom, right]
        )
    return y


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("small, large", [((5, 3), (17, 7)), ((9, 9), (4, 5)), ((1, 6), (3, 6))])
def test_bilinear_takes_pixels_as_areas_or_aligns_corners(small, large, corners):
    x = picture(*small)
    output = ResizeLike(corners)(x, picture(*large))
    np.testing.assert_allclose(output, bilinear(x, large, corners), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale, size", [(0.5, (4, 3)), (0.75, (7, 4)), (1.5, (14, 9))])
def test_by_a_factor(scale, size):
    x = picture(9, 6)
    np.testing.assert_allclose(ResizeBy(scale)(x), bilinear(x, size), rtol=1e-4, atol=1e-5)
    aligned = tuple(int((side - 1) * scale + 1) for side in (9, 6))
    output = ResizeBy(scale, align_corners=True)(x)
    np.testing.assert_allclose(output, bilinear(x, aligned, corners=True), rtol=1e-4, atol=1e-5)
    assert ResizeBy(0.01)(x).shape == (2, 1, 1, 3)


@pytest.mark.parametrize("policy, tolerance", [("mixed_float16", 0.13), ("mixed_bfloat16", 1)])
@pytest.mark.parametrize("scale", [0.05, 0.25, 0.7])
@pytest.mark.parametrize("corners", [False, True])
def test_half_precision_only_rounds_the_result(scale, corners, policy, tolerance):
    pixels = np.random.default_rng(0).integers(150, 256, (1, 80, 80, 3)).astype("float32")
    exact = ResizeBy(scale, align_corners=corners)(pixels)
    found = ResizeBy(scale, align_corners=corners, dtype=policy)(pixels)
    np.testing.assert_allclose(tf.cast(found, tf.float32), exact, atol=tolerance)


@pytest.mark.parametrize("scale", [0.1, 0.2, 0.25, 0.3, 1 / 3, 0.45, 0.5, 0.7, 1.3])
@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("side", [40, 41, 59, 63])
def test_samples_are_means_around_their_positions(scale, corners, side):
    columns = np.broadcast_to(np.arange(side, dtype="float32")[:, None], (1, 2, side, 1))
    found = ResizeBy(scale, align_corners=corners)(columns)[0, 0, :, 0]
    count = len(found)
    steps = np.arange(count)
    expected = steps * (side - 1) / (count - 1) if corners else (steps + 0.5) * side / count - 0.5
    np.testing.assert_allclose(found[1:-1], expected[1:-1], atol=1e-3)
    assert (np.diff(found) > 0).all()


@pytest.mark.parametrize("scale", [0.1, 0.2, 0.25, 0.3, 1 / 3, 0.45])
@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("side", [40, 41, 59, 63])
def test_small_factors_leave_out_no_pixel(scale, corners, side):
    one_of_each = np.eye(side, dtype="float32")[:, None, :, None]
    sums = np.sum(ResizeBy(scale, align_corners=corners)(one_of_each), (1, 2, 3))
    assert sums[2:-2].min() > 0.4 * sums.mean()
    if side * scale == int(side * scale) and 1 / scale == int(1 / scale) and not corners:
        np.testing.assert_allclose(sums, scale, rtol=1e-4)  # the means of whole cells


@pytest.mark.parametrize("scale", [0.25, 0.5, 0.75, 0.875, 1.25, 1.5, 1.75, 2, 1 / 3, 0.6, 0.8])
def test_sizes_are_those_of_exact_arithmetic(scale):
    sides = np.arange(1, 20_001)
    for corners in (False, True):
        scaled = (sides - 1) * scale + 1 if corners else np.round(sides * scale)
        found = ResizeBy(scale, corners).scaled(tf.constant(sides, tf.int32))
        np.testing.assert_array_equal(found, scaled.astype(int))


def test_factors_without_a_binary_fraction_are_taken_as_written():
    assert ResizeBy(0.7)(picture(45, 55)).shape == (2, 32, 38, 3)  # 31.5, 38.5
    assert ResizeBy(0.1234).scaled(10_000) == 1234
    assert ResizeBy(0.29, align_corners=True)(picture(101, 1)).shape == (2, 30, 1, 3)


def test_class_numbers_are_not_mixed():
    found = ResizeLike()(np.array([[[[0], [2]]]]), np.zeros((1, 1, 4, 1)))
    assert found.dtype == tf.float32
    np.testing.assert_allclose(np.ravel(found), [0, 0.5, 1.5, 2])


def test_a_single_pixel_is_broadcast_whether_its_size_is_known_or_not():
    x, reference = picture(1, 1), picture(5, 7)
    layer = ResizeLike()
    expected = np.broadcast_to(x, (2, 5, 7, 3))
    np.testing.assert_array_equal(layer(x, reference), expected)
    spec = tf.TensorSpec([None, None, None, 3])
    traced = tf.function(layer, input_signature=[spec, spec])
    np.testing.assert_allclose(traced(x, reference), expected, rtol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (3, 8), (9, 2)])
def test_pad_to_minimum_repeats_the_last_row_and_column_and_crop_undoes_it(size):
    x = picture(*size)
    rows, columns = max(7 - size[0], 0), max(5 - size[1], 0)
    expected = np.pad(x, ((0, 0), (0, rows), (0, columns), (0, 0)), mode="edge")
    padded = PadToMinimum((7, 5))(x)
    np.testing.assert_array_equal(padded, expected)
    np.testing.assert_array_equal(CropLike()(padded, x), x)


def test_shapes_are_known_as_far_as_they_can_be():
    x = keras.Input((None, 4, 2))
    assert PadToMinimum((7, 5))(x).shape == (None, None, 5, 2)
    for align in (False, True):
        assert ResizeLike(align)(x, keras.Input((8, None, 3))).shape == (None, 8, None, 2)
    assert CropLike()(x, keras.Input((2, None, 3))).shape == (None, 2, None, 2)
