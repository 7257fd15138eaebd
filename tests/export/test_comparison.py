from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from export.small import expected, small_model

from keras_deeplab import data
from keras_deeplab.export import ExportError, Limits
from keras_deeplab.export.comparison import (
    built_in_images,
    check_export,
    probabilities_of,
    whole_float32,
)
from keras_deeplab.export.definition import Definition
from keras_deeplab.runtimes import ExportedModel


@pytest.fixture(scope="module")
def definition():
    return Definition(small_model(6), "float32", ("float32",))


def export_that(definition, change):
    """An export whose outputs are the model's after a change."""

    def run(images):
        probabilities = expected(definition.model, images)
        outputs = {"labels": probabilities.argmax(-1), "probabilities": probabilities}
        return {**outputs, **change(outputs)}

    return ExportedModel(Path("export"), definition.metadata, run)


def test_figures_are_logged(definition, logs):
    check_export(export_that(definition, lambda _: {}), definition)
    assert "100.00% of labels equal, probabilities differ by up to" in logs.text


def test_products_are_whole_float32_while_outputs_are_compared(definition):
    """NVIDIA GPUs round factors to 10 bits by default: correct exports would exceed the limits."""
    enabled = tf.config.experimental.tensor_float_32_execution_enabled
    seen = []
    check_export(export_that(definition, lambda _: seen.append(enabled()) or {}), definition)
    assert seen == [False, False]
    assert enabled()


def test_several_exports_at_once_leave_the_rounding_as_it_was():
    enabled = tf.config.experimental.tensor_float_32_execution_enabled
    first, second = whole_float32(), whole_float32()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not enabled()
    second.__exit__(None, None, None)
    assert enabled()


def shifted(outputs):
    """A twentieth of all labels wrong, with probabilities that fit."""
    probabilities = outputs["probabilities"].copy()
    probabilities[:, ::20] = np.roll(probabilities[:, ::20], 1, -1)
    return {"labels": probabilities.argmax(-1), "probabilities": probabilities}


@pytest.mark.parametrize(
    "change, limits, message",
    [
        (lambda o: {"probabilities": o["probabilities"] * 0.99}, None, "differ by up to 0.0"),
        (lambda o: {"labels": np.roll(o["labels"], 1, 1)}, Limits(), "labels differ from those of"),
        (lambda o: {"probabilities": o["probabilities"] * np.nan}, Limits(), "labels differ"),
        (lambda o: {"labels": o["labels"][:, 1:]}, Limits(), "labels must have the shape"),
        (shifted, Limits(agreement=0.97), r"9[0-6]\.\d\d% of labels equal"),
        (shifted, Limits(agreement=0.5), None),
    ],
)
def test_deviations_beyond_the_limits(definition, change, limits, message):
    if message is None:
        check_export(export_that(definition, change), definition, limits)
    else:
        with pytest.raises(ExportError, match=message):
            check_export(export_that(definition, change), definition, limits)


@pytest.mark.slow
def test_mean_iou_of_both_on_labelled_images(definition, eager):
    """The label maps are the model's own, so that it scores 1."""

    class Own(data.Shapes):
        def dataset(self, split, numbers=None):
            def relabel(image, _):
                logits = definition.model(tf.cast(image[None], tf.float32))
                return image, tf.cast(tf.argmax(logits[0], -1), tf.uint8)

            return super().dataset(split, numbers).map(relabel)

    source = Own(train=1, val=2)
    wrong = export_that(definition, shifted)
    message = r"mean IoU 1\.0000 of the model and 0.* of the export.*mean_iou_drop=0.01"
    with pytest.raises(ExportError, match=message):
        check_export(wrong, definition, Limits(mean_iou_drop=0.01), source=source)


def test_labels_of_equal_probabilities_count_as_equal(definition):
    """Which of them is the largest is a matter of rounding."""
    model = small_model(6)
    model.get_layer("head").kernel.assign(model.get_layer("head").kernel * 0)
    model.get_layer("head").bias.assign([0, 0, 0, 0, 1, 1])
    tied = Definition(model, "float32", ("float32",))
    with pytest.warns(UserWarning, match="the same at every pixel"):
        check_export(export_that(tied, lambda o: {"labels": o["labels"] * 0 + 5}), tied)


def test_the_built_in_images_are_lively():
    for images in built_in_images((None, None, None, 3)):
        assert images.min() == 0
        assert images.max() == 255
        assert images.std() > 50
        assert not np.array_equal(images[0], images[1])
    with pytest.warns(UserWarning, match="the same at every pixel"):
        probabilities_of(tf.zeros(images.shape), images.shape)


def test_settings_of_limits():
    with pytest.raises(ValueError, match="`agreement` must be a number in"):
        Limits(agreement=98)
