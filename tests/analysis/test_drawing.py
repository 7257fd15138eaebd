from __future__ import annotations

import keras
import numpy as np
import pytest

from keras_deeplab import layers
from keras_deeplab.analysis import (
    drawing,
    effective_receptive_field,
    fields_picture,
    live_taps,
    pyramid_picture,
    receptive_field,
    taps_picture,
    transposed_receptive_field,
)
from keras_deeplab.analysis.drawing import DEAD_TAP, MAP, TAP, tap_map


@pytest.fixture
def figure(monkeypatch):
    """The figures that are rendered."""
    found = []
    monkeypatch.setattr(drawing, "rendered", lambda one: found.append(one) or one)
    return found


@pytest.mark.parametrize("rate, position", [(1, (4, 4)), (2, (4, 1)), (3, (0, 8)), (8, (4, 4))])
def test_drawn_taps_are_those_of_the_convolution(rate, position):
    atrous = keras.layers.Conv2D(1, 3, padding="same", dilation_rate=rate)
    model = keras.Sequential([keras.Input((None, None, 1)), atrous])
    atrous.set_weights([np.ones((3, 3, 1, 1)), np.zeros(1)])
    found = tap_map(3, rate, 9, position)
    inside = found[rate : rate + 9, rate : rate + 9]
    expected = transposed_receptive_field(model, (9, 9), position)[..., 0] == 1
    np.testing.assert_array_equal(inside == TAP, expected)
    assert set(np.unique(inside)) <= {MAP, TAP}
    assert (found == TAP).sum() + (found == DEAD_TAP).sum() == 9


def test_the_captions_of_taps_are_the_live_taps(figure):
    taps_picture((1, 6, 12), side=17)
    titles = [axes.get_title() for axes in figure[0].axes]
    assert titles == ["rate 1: 9 of 9 taps", "rate 6: 9 of 9 taps", "rate 12: 1 of 9 taps"]
    atrous = keras.layers.Conv2D(1, 3, dilation_rate=12, padding="same")
    (found,) = live_taps(keras.Sequential([keras.Input((17, 17, 1)), atrous]), 17, 17)
    at_positions = [(tap_map(3, 12, 17, position) == TAP).sum() for position in np.ndindex(17, 17)]
    np.testing.assert_allclose(np.mean(at_positions) / 9, found.share)


def test_drawn_bins_are_those_that_the_layer_pools(figure):
    pyramid_picture([(5, 7)], levels=(3, 2))
    pooled = layers.SpatialPyramidPooling2D((3, 2), "average")
    image = np.random.default_rng(0).normal(size=(1, 5, 7, 1)).astype("float32")
    values = iter(pooled(image).numpy().reshape(-1))
    for axes in figure[0].axes:
        for box in axes.patches:
            left, top = box.get_x() + 0.5, box.get_y() + 0.5
            rows = slice(int(top), int(top + box.get_height()))
            columns = slice(int(left), int(left + box.get_width()))
            np.testing.assert_allclose(image[0, rows, columns].mean(), next(values), rtol=1e-5)
    assert next(values, None) is None
    assert [axes.get_title() for axes in figure[0].axes] == ["5x7: 3x3 bins", "5x7: 2x2 bins"]


def network(kernel):
    return keras.Sequential(
        [keras.Input((21, 31, 3)), keras.layers.Conv2D(2, kernel, padding="same")]
    )


def test_fields_are_drawn_at_their_place(figure):
    image = np.full((21, 31, 3), 90, np.uint8)
    fields = {
        str(kernel): (
            receptive_field(network(kernel)).stages[-1],
            effective_receptive_field(network(kernel)),
        )
        for kernel in (5, 27)
    }
    picture = fields_picture(image, fields)
    assert picture is figure[0]
    small, large = picture.axes
    (box,) = small.patches
    assert box.get_bbox().bounds == (12.5, 7.5, 5, 5)  # around (10, 15)
    assert large.patches[0].get_bbox().bounds == (1.5, -0.5, 27, 21)  # cut at the border
    assert small.get_title() == "5\n5x5, 95 %: 5"
    shown, heat = (one.get_array() for one in small.get_images())
    np.testing.assert_array_equal(shown, image)
    rows, columns = np.nonzero(heat > 0.5)  # a blurred 5x5 kernel
    assert (rows.min(), columns.min()) >= (7, 12)
    assert max(rows.max() - 10, columns.max() - 15, 10 - rows.min(), 15 - columns.min()) <= 3
    assert heat[10, 15] > 0.3
    assert heat.max() == 1


def test_the_field_of_a_sample_follows_strides():
    strided = keras.layers.Conv2D(1, 3, 2)
    model = keras.Sequential([keras.Input((21, 31, 3)), strided])
    stage = receptive_field(model).stages[-1]
    for place in ((0, 0), (3, 7), (9, 14)):
        rows, columns = np.nonzero(transposed_receptive_field(model, (21, 31), place).any(-1))
        expected = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
        assert stage.box(place, (21, 31)) == expected


def test_pictures_have_the_colours_of_what_they_show():
    picture = taps_picture((1, 4), side=5)
    assert picture.dtype == np.uint8
    for color in drawing.TAP_COLORS:
        wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        assert (picture == wanted).all(-1).mean() > 0.003


def test_arguments_are_checked(monkeypatch):
    with pytest.raises(ValueError, match="`kernel` must be odd"):
        taps_picture((1,), 5, kernel=4)
    for position in ((5, 0), (1, 2, 3), (1.5, 2)):
        with pytest.raises(ValueError, match="`position` must be"):
            taps_picture((1,), 5, position=position)
    with pytest.raises(ValueError, match="`fields` must be a dict"):
        fields_picture(np.zeros((5, 5, 3)), {})
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r"needs matplotlib: pip install keras_deeplab\[plots\]"):
        taps_picture((1,), 5)
