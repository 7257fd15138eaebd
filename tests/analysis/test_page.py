"""The page of receptive fields, in a browser: its numbers, its drawing, its escapes."""

from __future__ import annotations

import json
import re

import keras
import numpy as np
import pytest
from browser import browse

from keras_deeplab.analysis import receptive_field_page

SIZE = (40, 60)
NAMES = ("<script>alert(1)</script>", "a & b")
READY = {"wait": "document.body.dataset.ready === 'yes'"}
FACTS = {"script": "document.getElementById('facts').textContent"}


def column_classifier(weight=1.0):
    """Class 1 where the mean of 5x9 pixels is above 50; each logit has a gradient."""
    kernel = np.zeros((5, 9, 3, 2), np.float32)
    kernel[..., 1] = weight / kernel[..., 1].size
    layer = keras.layers.Conv2D(2, (5, 9), padding="same", bias_initializer="zeros")
    model = keras.Sequential([keras.Input((None, None, 3)), layer])
    kernel[..., 0] = -kernel[..., 1]
    layer.set_weights([kernel, np.array([100.0, 0.0])])
    return model


@pytest.fixture(scope="module")
def image():
    """Dark to the left of column 30, bright from there on."""
    pixels = np.zeros((*SIZE, 3), np.uint8)
    pixels[:, 30:] = 200
    return pixels


@pytest.fixture(scope="module")
def content(image):
    page = receptive_field_page(column_classifier(), image, NAMES, title="</title><b>", grid=4)
    return page, json.loads(re.search('"content">(.*?)</script>', page)[1])


def pixel(row, column):
    data = f"document.getElementById('view').getContext('2d').getImageData({column}, {row}, 1, 1)"
    return {"script": f"[...{data}.data].slice(0, 3)"}


def click(row, column):
    """A click on the middle of a pixel, wherever the view lies in the window."""
    return {
        "script": f"""(() => {{
            const view = document.getElementById("view"), box = view.getBoundingClientRect();
            view.dispatchEvent(new MouseEvent("click", {{
                clientX: box.left + box.width * ({column} + 0.5) / {SIZE[1]},
                clientY: box.top + box.height * ({row} + 0.5) / {SIZE[0]}}}));
        }})()"""
    }


def test_a_click_shows_the_field_of_the_pixel(content, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(content[0], encoding="utf-8")
    steps = [
        READY,
        click(20, 45),
        FACTS,
        pixel(18, 41),  # a corner of the rectangle
        pixel(25, 58),  # far from everything
        click(1, 2),
        FACTS,
        {"script": "document.title"},
        {"script": "document.querySelector('h1').textContent"},
    ]
    _, _, right, corner, plain, _, left, *titles = browse(path, steps)
    assert titles == ["</title><b>"] * 2
    assert "row 20, column 45\n" in right
    assert "Class: a & b\n" in right
    assert "field: 5 x 9 pixels\n" in right
    assert "rows 18 to 22, columns 41 to 49\n" in right
    assert "at row 15, column 52: 95 % of the gradient in 9 x 9 pixels" in right
    np.testing.assert_allclose(corner, (0, 224, 255), atol=3)
    assert plain[2] < 200  # no cyan
    assert f"Class: {NAMES[0]}\n" in left
    assert "rows 0 to 3, columns 0 to 6\n" in left  # cut at the border
    assert "at row 5, column 7: " in left


def test_a_press_of_the_mouse_is_a_click(content, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(content[0], encoding="utf-8")
    box = "(box => [box.left, box.top, box.width])(view.getBoundingClientRect())"
    *_, (left, top, width), facts = browse(
        path, [READY, {"click": [100, 300]}, {"script": box}, FACTS]
    )
    side = width / SIZE[1]
    row, column = int((300 - top) / side), int((100 - left) / side)
    assert f"Pixel: row {row}, column {column}\n" in facts


def test_the_heat_and_the_classes_are_those_of_the_pixels(content):
    page, found = content
    assert "<script>alert" not in page
    assert found["names"] == list(NAMES)
    assert found["sides"] == [9] * 16
    assert found["places"][:5] == [[5, 7], [5, 22], [5, 37], [5, 52], [15, 7]]
    labels, heat = decoded(found["labels"]), decoded(found["heats"][6])
    np.testing.assert_array_equal(labels[20, :, 0], np.arange(60) >= 28)
    expected = np.zeros(SIZE)
    expected[13:18, 33:42] = 255  # of the pixel (15, 37), the same weight for each
    np.testing.assert_array_equal(heat, expected)


def decoded(uri):
    import base64
    import io

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))


def test_large_images_are_shrunk_and_fixed_sizes_kept(image):
    large = image.repeat(3, 0).repeat(3, 1)
    page = receptive_field_page(column_classifier(), large, grid=1, max_side=60)
    assert '"size": [40, 60]' in page
    inputs = keras.Input((16, 24, 3))
    fixed = keras.Model(inputs, column_classifier()(inputs))
    assert '"size": [16, 24]' in receptive_field_page(fixed, large, grid=1)


def test_arguments_are_checked(image):
    with pytest.raises(ValueError, match="`class_names` must be 2 different names"):
        receptive_field_page(column_classifier(), image, ["one"])
    with pytest.raises(ValueError, match="`image` must be one image"):
        receptive_field_page(column_classifier(), np.stack([image] * 2))
    with pytest.raises(ValueError, match="`model` must be one whose output depends"):
        receptive_field_page(column_classifier(0.0), image + 1, grid=1)
    strided = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(2, 3, 2)])
    with pytest.raises(ValueError, match="`model` must be one with logits of the size 40x60"):
        receptive_field_page(strided, image)


def test_errors_on_a_page_are_reported(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("<script>missing()</script>")
    with pytest.raises(AssertionError, match="missing is not defined"):
        browse(path, [{"script": "1 + 1"}])


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_images_of_other_channels(channels):
    inputs = keras.Input((None, None, channels))
    model = keras.Model(inputs, keras.layers.Conv2D(2, 3, padding="same")(inputs))
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, channels), np.uint8)
    page = receptive_field_page(model, pixels, grid=2)
    found = json.loads(re.search('"content">(.*?)</script>', page)[1])
    assert found["field"] == [3, 3]


def test_an_image_of_a_value_range(tmp_path):
    pixels = np.zeros((*SIZE, 3), np.uint16)
    pixels[:, 30:] = 3000
    np.save(tmp_path / "a.npy", pixels)
    scaled = np.rint(pixels / 4000 * 255).astype(np.uint8)
    found = receptive_field_page(
        column_classifier(), tmp_path / "a.npy", grid=2, value_range=(0, 4000)
    )
    assert found == receptive_field_page(column_classifier(), scaled, grid=2)


def test_a_title_or_class_with_the_words_of_the_template(image):
    page = receptive_field_page(
        column_classifier(), image, ["TITLE", "CONTENT"], title="CONTENT", grid=2
    )
    assert "<title>CONTENT</title>" in page
    found = json.loads(re.search('"content">(.*?)</script>', page)[1])
    assert found["names"] == ["TITLE", "CONTENT"]
