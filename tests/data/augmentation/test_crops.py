from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_deeplab.data.augmentation.augmenting import Augmentation
from keras_deeplab.data.augmentation.crops import enclosing, random_pad, random_scaled_crop, rotated

SPECS = [
    tf.TensorSpec((None, None, 3), tf.float32),
    tf.TensorSpec((None, None), tf.uint8),
    tf.TensorSpec((2,), tf.int32),
]


@cache
def graph(**arguments):
    augmentation = Augmentation(**arguments)

    def changed(image, label, seed):
        return augmentation([(image, label)], seed)

    return tf.function(changed, input_signature=SPECS, autograph=False)


def augmented(label, number, image=None, **arguments):
    """An image, by default the label's values as grey, and its label."""
    image = np.repeat(label[..., None], 3, -1) if image is None else image
    tensors = graph(**arguments)(image.astype(np.float32), label, tf.constant([number, 7]))
    return [tensor.numpy() for tensor in tensors]


def regions(height, width, side=24):
    """Smooth regions with values that an interpolated label would not have (0, 40, 80, ...)."""
    rng = np.random.default_rng(5)
    cells = rng.integers(0, 6, (-(-height // side), -(-width // side))) * 40
    return np.kron(cells, np.ones((side, side)))[:height, :width].astype(np.uint8)


@pytest.mark.parametrize(
    "size, rotation", [((90, 130), None), ((40, 200), None), ((1, 1), None), ((90, 130), (-40, 40))]
)
def test_labels_are_never_new_and_stay_on_their_pixels(size, rotation):
    label = regions(*size)
    wrong = total = 0
    for number in range(12):
        picture, result = augmented(label, number, crop_size=(64, 80), rotation=rotation)
        assert set(np.unique(result)) <= {*np.unique(label), 255}
        padding = result == 255
        if rotation is None:  # else pixels at the edge are in part grey
            np.testing.assert_array_equal(picture[padding], 127.5)
        # Where a label's neighbours agree, no interpolation can have changed the pixel.
        high = tf.nn.max_pool2d(picture[None], 5, 1, "SAME")[0]
        low = -tf.nn.max_pool2d(-picture[None], 5, 1, "SAME")[0]
        flat = (high - low).numpy().max(-1) < 0.1
        wrong += (np.abs(picture[..., 0] - result) > 0.1)[flat & ~padding].sum()
        total += (~padding).sum()
        # At edges the two may differ by the part of a pixel that scaling shifts, not more.
        near = np.abs(picture[..., 0] - result)[~padding]
        assert (near > 100).mean() < 0.15
    assert total > 0
    assert wrong == 0


def centre_of(mask):
    return np.array([axis.mean() for axis in np.nonzero(mask)])


def test_the_range_of_scales_is_used_and_edges_agree_below_a_pixel():
    label = np.zeros((120, 120), np.uint8)
    label[37:81, 29:90] = 200
    scales = []
    for number in range(50):
        picture, result = augmented(label, number, crop_size=(240, 240))
        assert np.abs(centre_of(result == 200) - centre_of(picture[..., 0] > 150)).max() < 0.6
        scales.append(np.sqrt((result != 255).mean() * 4))
    assert 0.48 < min(scales) < 0.65
    assert 1.85 < max(scales) < 2.03


def test_window_fills_the_crop_where_the_image_allows():
    label, image = tf.zeros((97, 131), tf.uint8), tf.zeros((97, 131, 3))
    for number in range(15):
        arguments = ((48, 48), (0.5, 2.0), 0.0, None)
        _, result = random_scaled_crop(image, label, tf.constant([number, 0]), *arguments)
        assert result.shape == (48, 48)


@pytest.mark.parametrize(
    "scales, step, sizes",
    [
        ((0.5, 2.1), 0.75, {(20, 10), (50, 25), (80, 40)}),
        # In float64, 1.2 - 0.9 is below three times 0.1.
        ((0.9, 1.2), 0.1, {(36, 18), (40, 20), (44, 22), (48, 24)}),
    ],
)
def test_scales_in_steps(scales, step, sizes):
    label, image = tf.zeros((40, 20), tf.uint8), tf.zeros((40, 20, 3))
    arguments = ((99, 99), scales, 0.0, step)
    crops = [
        random_scaled_crop(image, label, tf.constant([number, 0]), *arguments)[1]
        for number in range(30)
    ]
    assert {tuple(crop.shape) for crop in crops} == sizes


def test_images_that_shrink_are_antialiased():
    noise = np.random.default_rng(0).integers(0, 256, (64, 48), np.uint8)
    picture, _ = augmented(noise, 0, crop_size=(16, 12), scales=(0.25, 0.25), flip=False)
    expected = Image.fromarray(noise).resize((12, 16), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(picture[..., 0], expected, atol=1.5)
    assert 5 < picture.std() < 20  # without a filter 37


@pytest.mark.parametrize(
    "flip, axes",
    [
        (True, (1,)),
        ("horizontal", (1,)),
        ("vertical", (0,)),
        ("horizontal_and_vertical", (0, 1)),
        (False, ()),
    ],
)
def test_flip_mirrors_half_of_the_time_along_each_axis(flip, axes):
    label = np.array([[0, 1, 2], [3, 4, 5]], np.uint8)
    possible = {(): label, (0,): label[::-1], (1,): label[:, ::-1], (0, 1): label[::-1, ::-1]}
    seen = Counter()
    for number in range(60):
        picture, result = augmented(label, number, crop_size=(2, 3), scales=(1, 1), flip=flip)
        np.testing.assert_array_equal(picture[..., 0], result)
        seen[next(key for key, one in possible.items() if np.array_equal(one, result))] += 1
    assert set(seen) == {key for key in possible if set(key) <= set(axes)}
    assert min(seen.values()) > (60 / 2 ** len(axes)) / 2


def test_mirroring_does_not_depend_on_the_colours():
    label, image = np.array([[0, 1]], np.uint8), np.full((1, 2, 3), 100)
    options = {"crop_size": (1, 2), "scales": (1, 1), "color_jitter": 0.5}
    found = [augmented(label, number, image, **options) for number in range(30)]
    assert {(bool(result[0, 0]), picture.mean() > 100) for picture, result in found} == {
        (mirrored, brighter) for mirrored in (False, True) for brighter in (False, True)
    }


def test_crops_reach_every_corner():
    label = np.arange(100, dtype=np.uint8).reshape(10, 10)
    crops = (
        augmented(label, number, crop_size=(8, 8), scales=(1, 1), flip=False)[1]
        for number in range(80)
    )
    expected = {10 * row + column for row in range(3) for column in range(3)}
    assert {int(crop[0, 0]) for crop in crops} == expected


def test_padding_goes_to_a_random_place():
    image, label = tf.zeros((2, 3, 3)), tf.zeros((2, 3), tf.uint8)
    places = set()
    for number in range(60):  # of equal ranges, which must not be drawn from one seed
        picture, result = random_pad(image, label, tf.constant([number, 1]), (4, 5))
        rows, columns = np.nonzero(result.numpy() == 0)
        assert len(rows) == 6
        assert (picture.numpy()[rows, columns] == 0).all()
        places.add((int(rows.min()), int(columns.min())))
    assert places == {(row, column) for row in range(3) for column in range(3)}


@pytest.mark.parametrize("focus, expected, tolerance", [(0.0, 0.02, 0.03), (1.0, 0.34, 0.09)])
def test_class_focus_shows_rare_classes_more_often(focus, expected, tolerance):
    """Anywhere: of 91 x 131 windows those that reach rows up to 7 and columns from 150 on.

    Around the sign for a third of the focused ones.
    """
    label = np.zeros((120, 160), np.uint8)  # a road
    label[60:100, 20:72] = 1  # a car
    label[3:8, 150:154] = 2  # a sign of 0.1 %
    options = {"crop_size": (30, 30), "scales": (1, 1), "flip": False, "class_focus": focus}
    crops = [augmented(label, number, **options)[1] for number in range(300)]
    assert np.mean([(crop == 2).any() for crop in crops]) == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("value", [0, 254])
def test_focused_pixel_is_in_the_middle_of_the_window(value):
    label = np.full((60, 80), 255, np.uint8)
    label[31, 42] = value
    for number in range(5):
        crop = augmented(label, number, crop_size=(21, 31), scales=(1, 1), class_focus=1.0)[1]
        assert np.argwhere(crop == value).tolist() == [[10, 15]]
        assert (crop == 255).sum() == crop.size - 1


def test_every_pixel_of_the_drawn_class_is_in_the_middle_of_some_window():
    """Windows of one pixel, which are that pixel."""
    label = np.full((5, 6), 255, np.uint8)
    places = [(0, 0), (0, 5), (2, 1), (2, 3), (4, 4)]
    for row, column in places:
        label[row, column] = 3
    numbered = np.arange(30, dtype=np.uint8).reshape(5, 6)
    image = np.stack([numbered] * 3, -1)
    options = {"crop_size": (1, 1), "scales": (1, 1), "flip": False, "class_focus": 1.0}
    drawn = [augmented(label, k, image, **options)[0][0, 0, 0] for k in range(150)]
    values, counts = np.unique(np.asarray(drawn), return_counts=True)
    assert values.tolist() == [6 * row + column for row, column in places]
    assert counts.min() > 15


def test_windows_without_focus_stay_where_they_were():
    label = np.arange(256, dtype=np.uint8).repeat(64).reshape(128, 128)
    image = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)

    def same(label, number):
        found = [
            augmented(label, number, image, crop_size=(16, 16), class_focus=focus)
            for focus in (0.0, 0.5)
        ]
        return all(map(np.array_equal, *found))

    assert 18 < sum(same(label, number) for number in range(60)) < 42
    # Without labelled pixels a window is anywhere.
    assert all(same(np.full_like(label, 255), number) for number in range(8))


def turned(label, degrees, crop_size):
    image = tf.constant(label[..., None], tf.float32)
    angle = tf.constant(np.deg2rad(degrees), tf.float32)
    found = rotated(image, tf.constant(label), angle, crop_size)
    return found[0].numpy()[..., 0], found[1].numpy()


@pytest.mark.parametrize("turns", [-1, 0, 1, 2])
def test_rotation_by_right_angles_is_exact_and_counterclockwise(turns):
    label = np.arange(63, dtype=np.uint8).reshape(7, 9)
    expected = np.rot90(label, turns)
    picture, result = turned(label, 90 * turns, expected.shape)
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_allclose(picture, expected, atol=1e-3)


def test_rotation_about_the_centre_and_outside_of_the_image():
    label = np.zeros((61, 61), np.uint8)
    label[28:33, 50:55] = 200  # 22 to the right of the centre
    picture, result = turned(label, 30, (81, 81))
    expected = [40 - 22 * np.sin(np.pi / 6), 40 + 22 * np.cos(np.pi / 6)]
    np.testing.assert_allclose(centre_of(result == 200), expected, atol=0.3)
    np.testing.assert_allclose(centre_of(abs(picture - 200) < 50), expected, atol=0.3)
    for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        assert result[corner] == 255
        assert picture[corner] == 127.5
    assert (result != 255).sum() == pytest.approx(61 * 61, rel=0.01)


def test_a_turned_crop_is_full_where_the_image_allows():
    """The window is larger by what the corners need."""
    assert enclosing((30, 40), tf.constant(0.0)).numpy().tolist() == [30, 40]
    np.testing.assert_allclose(enclosing((30, 40), tf.constant(np.pi / 2)), [40, 30], atol=1)
    label = np.zeros((100, 110), np.uint8)
    for number in range(10):
        options = {"crop_size": (40, 60), "scales": (1, 1), "rotation": (-45, 45)}
        picture, result = augmented(label, number, **options)
        assert (result == 0).all()
        np.testing.assert_allclose(picture, 0, atol=1e-2)  # without grey of the outside


def test_the_range_of_angles_is_used():
    label = np.zeros((81, 81), np.uint8)
    label[38:43, 60:65] = 200
    angles = []
    for number in range(60):
        arguments = {"scales": (1, 1), "flip": False, "rotation": (-5, 20)}
        _, result = augmented(label, number, crop_size=(81, 81), **arguments)
        down, right = centre_of(result == 200) - 40
        angles.append(np.rad2deg(np.arctan2(-down, right)))
    assert -5.5 < min(angles) < -3
    assert 18 < max(angles) < 20.5
