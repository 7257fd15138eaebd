from __future__ import annotations

import numpy as np
import pytest

from keras_deeplab.data import voc_colors
from keras_deeplab.pictures import HEAT, comparison_picture, confusion_picture, overlay

COLORS = [(255, 0, 0), (0, 200, 10), (1, 2, 3)]


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (12, 10))
    labels[:2] = 255
    return rng.integers(0, 256, (12, 10, 3), np.uint8), labels


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_overlay_mixes_colours_and_leaves_ignored_pixels(pair, alpha):
    image, labels = pair
    picture = overlay(image, labels, COLORS, alpha)
    assert picture.dtype == np.uint8
    for index in np.ndindex(labels.shape):
        expected = image[index].astype(float)
        if labels[index] != 255:
            expected = (1 - alpha) * expected + alpha * np.array(COLORS[labels[index]])
        np.testing.assert_allclose(picture[index], expected, atol=0.501)


def test_overlay_defaults_and_kinds_of_image(pair):
    image, labels = pair
    np.testing.assert_array_equal(overlay(image, labels), overlay(image, labels, voc_colors(3)))
    gray = image[..., 0]
    expected = overlay(np.dstack([gray] * 3), labels)
    for given in (gray, gray[..., None], gray.astype(np.float32)):
        np.testing.assert_array_equal(overlay(given, labels), expected)
    batch = overlay(np.stack([image, image]), np.stack([labels, labels]))
    np.testing.assert_array_equal(batch, [overlay(image, labels)] * 2)


def test_every_class_has_a_colour():
    """Also of models with more classes than 8 bits count."""
    labels = np.array([[0, 254, 299]])
    painted = overlay(np.zeros((1, 3, 3), np.uint8), labels, alpha=1.0, ignore_label=None)
    np.testing.assert_array_equal(painted[0], np.array(voc_colors(300))[labels[0]])
    with pytest.raises(ValueError, match="one colour per class for the labels 0 to 70000"):
        overlay(np.zeros((1, 2, 3), np.uint8), np.array([[0, 70_000]]))


def test_overlay_refuses(pair):
    image, labels = pair
    for arguments, message in (
        ((image[1:], labels), r"`image` must be of the labels' shape \(12, 10\).*\(11, 10, 3\)"),
        ((image.astype("uint16") * 257, labels), r"`image` must be of values in 0\.\.255"),
        ((image / 0.0, labels), r"`image` must be of values in 0\.\.255"),
        ((image, labels, None, 2), r"`alpha` must be a number in \[0, 1\]"),
        ((image, labels, COLORS[:2]), "one colour per class for the labels 0 to 2"),
        ((image, labels - 1, COLORS, 0.5, 254), "for the labels -1 to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            overlay(*arguments)


def find(picture, patch):
    """Positions at which the patch is in the picture, pixel for pixel."""
    windows = np.lib.stride_tricks.sliding_window_view(picture, patch.shape)[:, :, 0]
    return [tuple(p) for p in np.argwhere((windows == patch).all((-1, -2, -3)))]


def test_comparison_picture_holds_every_cell_and_legend_colour(pair):
    image, labels = pair
    other, truth = image[::-1][:7, :9], labels[3:10, 1:][::-1]
    predicted = np.where(labels == 255, 0, labels)
    names = ["sky", "ground", "tree"]
    picture = comparison_picture([image, other], [labels, truth], [predicted, truth], names, COLORS)
    assert picture.dtype == np.uint8
    painted = np.array([*COLORS, *[(0, 0, 0)] * 252, voc_colors(256)[255]], np.uint8)
    rows = [[image, painted[labels], painted[predicted]], [other, painted[truth], painted[truth]]]
    places = [[find(picture, cell) for cell in row] for row in rows]
    assert [len(place) for place in places[0]] == [1, 1, 1]
    columns = [place[0][1] for place in places[0]]
    assert columns == sorted(columns)
    assert [y for y, _ in places[1][1]] == [places[1][0][0][0]] * 2  # truth equals prediction
    assert [x for _, x in places[1][1]] == columns[1:]
    bottom = picture[places[1][0][0][0] + 7 :]
    for color in [*COLORS, voc_colors(256)[255]]:
        assert find(bottom, np.full((10, 10, 3), color, np.uint8)), color


def test_comparison_picture_shrinks_labels_without_mixing(pair):
    image = np.zeros((30, 1000), np.uint8)
    labels = np.arange(1000)[None].repeat(30, 0) % 2
    picture = comparison_picture([image], [labels], [labels], ["a", "b"], COLORS[:2], max_width=100)
    assert picture.shape[1] < 350
    colourful = picture[np.ptp(picture.astype(int), axis=-1) > 100]
    assert {tuple(map(int, c)) for c in colourful} <= set(COLORS)


def test_comparison_picture_refuses(pair):
    image, labels = pair
    with pytest.raises(ValueError, match="`images` must be as many"):
        comparison_picture([image], [labels], [], ["a"] * 3)
    with pytest.raises(ValueError, match="`predictions` must be of the size"):
        comparison_picture([image], [labels], [labels[1:]], ["a", "b", "c"])


def heat(share):
    return np.rint(255 + np.multiply.outer(share, HEAT - 255.0)).astype(np.uint8)


def test_confusion_picture_shows_the_share_of_each_row():
    confusion = np.array([[60, 30, 10], [0, 0, 0], [25, 0, 75]])
    picture = confusion_picture(confusion, ["sky", "traffic light", "tree"])
    assert picture.dtype == np.uint8
    shares = [[0.6, 0.3, 0.1], [0, 0, 0], [0.25, 0, 0.75]]
    expected = heat(np.array(shares))
    expected[1] = 224
    # Corners of cells, which the numbers leave free, in one piece from the first to the last.
    ((top, left),) = find(picture, np.tile(heat(0.6), (5, 5, 1)))[:1]
    corners = picture[top : top + 3 * 34 : 34, left : left + 3 * 34 : 34]
    np.testing.assert_array_equal(corners, expected)
    before = confusion_picture(10 * confusion, ["sky", "traffic light", "tree"])
    np.testing.assert_array_equal(picture, before)
    # Something is written in every cell of at least half a percent, beside every row, above all.
    cells = picture[top : top + 102, left : left + 102].reshape(3, 34, 3, 34, 3)
    written = cells.astype(int).std((1, 3)).max(-1) > 0
    np.testing.assert_array_equal(written, np.array(shares) > 0)
    names = picture[top : top + 102, : left - 2].reshape(3, 34, -1)
    assert (names.min((1, 2)) < 100).all()
    above = picture[: top - 2, left : left + 102].reshape(top - 2, 3, 34, 3)[25:]
    assert (above.min((0, 2, 3)) < 100).all()


def test_confusion_picture_of_many_classes_is_small():
    confusion = np.eye(150) * 9 + 1
    picture = confusion_picture(confusion, range(150))
    assert picture.shape[0] < 1300
    dark = (picture == heat(10 / 159)).all(-1)
    rows = np.flatnonzero(dark.any(1))
    assert np.ptp(rows) + 1 == len(rows) == dark.sum() / 8 == 8 * 150


def test_confusion_picture_refuses():
    with pytest.raises(ValueError, match=r"each of 3 class names. .*\(2, 2\)"):
        confusion_picture(np.ones((2, 2)), ["a", "b", "c"])
