"""From the arguments of an export of one file to its comparison, without a converter."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from export.small import pictures, small_model

from keras_deeplab import data
from keras_deeplab.export import ExportError, Limits, single_file
from keras_deeplab.export.definition import Definition
from keras_deeplab.export.single_file import calibration_split, write_file


@pytest.fixture(scope="module")
def model():
    return small_model(6)


class Wide(data.Shapes):
    """Images of 48x40 pixels."""

    def dataset(self, split, numbers=None):
        return super().dataset(split, numbers).map(lambda x, y: (x[:48, :40], y[:48, :40]))


@pytest.fixture
def calibrated_on(model, tmp_path):
    """Returns a function from arguments to the images that a converter gets."""

    def images_of(precision, images=None, source=None, **settings):
        given = []

        def write(definition, images, path):
            given.append(images)
            raise OSError("enough")  # which stays an OSError

        definition = Definition(model, precision, (precision,), **settings)
        with pytest.raises(OSError, match="^enough$"):
            write_file(definition, tmp_path / "a.x", ".x", False, write, images, source, None)
        return given[0]

    return images_of


@pytest.mark.parametrize("size", [None, (24, 30)])
def test_int8_is_calibrated_on_some_images_of_the_source(calibrated_on, size):
    source = Wide(train=40, val=1)
    found = calibrated_on("int8", source=source, image_size=size, single=True)
    every = [image for image, _ in source.dataset("train").as_numpy_iterator()]
    chosen = [every[number] for number in np.linspace(0, 39, 32).astype(int)]
    for images, whole in zip(found, chosen, strict=True):
        expected = np.rint(tf.image.resize(whole, size or (48, 40)))
        assert (images.dtype, images.std() > 1) == (np.uint8, True)
        np.testing.assert_array_equal(images, expected[None])


def test_a_converter_gets_the_images_given(calibrated_on):
    images = [pictures((9, 8, 3)), pictures((7, 6, 3))]
    for precision in ("int8", "float32"):
        for one, given in zip(calibrated_on(precision, images), images, strict=True):
            np.testing.assert_array_equal(one, given[None])
    assert calibrated_on("float32", source=data.Shapes(train=1, val=1)) is None


@pytest.mark.parametrize("splits, name", [(("val", "train"), "train"), (("a", "b"), "a")])
def test_the_split_of_the_calibration(splits, name):
    assert calibration_split(SimpleNamespace(splits=splits)) == name


def test_a_file_is_compared_as_asked(model, tmp_path, monkeypatch):
    seen, opened, source, limits = [], object(), object(), Limits(0.5)
    monkeypatch.setattr(single_file, "open_exported", lambda path: opened)
    monkeypatch.setattr(single_file, "check_export", lambda *given: seen.append(given))
    definition, pixels = Definition(model, "float32", ("float32",)), pictures((9, 8, 3))

    def write(definition, images, path):
        path.write_text("written")

    path = tmp_path / "a.x"
    assert write_file(definition, path, ".x", False, write, [pixels], source, limits) == path
    assert path.read_text() == "written"
    ((exported, *others, images, of),) = seen
    assert (exported, others, of) == (opened, [definition, limits], source)
    np.testing.assert_array_equal(images, pixels[None, None])


@pytest.mark.parametrize("at", ["the converter", "the runtime"])
def test_a_converter_or_a_runtime_that_fails(model, tmp_path, monkeypatch, at):
    def write(definition, images, path):
        if at == "the converter":
            raise KeyError("odd")

    def opened(path):
        raise ValueError("odd file")

    monkeypatch.setattr(single_file, "open_exported", opened)
    definition = Definition(model, "float32", ("float32",))
    message = "cannot be converted to .x: 'odd'" if at == "the converter" else "^odd file$"
    with pytest.raises(ExportError, match=message):
        write_file(definition, tmp_path / "a.x", ".x", False, write, None, None, None)
    assert not list(tmp_path.iterdir())
