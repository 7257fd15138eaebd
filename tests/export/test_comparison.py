from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from export.small import encoded, expected, pictures, small_model

from keras_deeplab import data
from keras_deeplab.export import ExportError, Limits, comparison
from keras_deeplab.export.comparison import (
    built_in_images,
    built_in_shapes,
    check_export,
    image_batches,
    probabilities_of,
    scored_split,
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


def labels_shifted(outputs):
    return {"labels": shifted(outputs)["labels"]}


@pytest.mark.parametrize(
    "change, limits, message",
    [
        (lambda o: {"probabilities": o["probabilities"] * 0.99}, None, "differ by up to 0.0"),
        (
            lambda o: (
                {"probabilities": o["probabilities"] * 0.99} if len(o["labels"][0]) == 97 else {}
            ),
            None,
            "differ by up to 0.0",
        ),
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


def test_limits_are_those_of_the_precision():
    for precision, passes in (("float32", False), ("float16", False), ("int8", True)):
        definition = Definition(small_model(6), precision, (precision,), ("labels",))
        exported = export_that(definition, labels_shifted)
        if passes:
            check_export(exported, definition)
        else:
            with pytest.raises(ExportError, match=r"9[0-6]\.\d\d% of labels equal"):
                check_export(exported, definition)


def test_images_that_are_given_are_compared(definition):
    seen, images = [], [pictures((1, 20, 30, 3)), pictures((2, 31, 17, 3))]
    exported = export_that(definition, lambda o: seen.append(o["labels"].shape) or {})
    check_export(exported, definition, images=images)
    assert seen == [(1, 20, 30), (2, 31, 17)]


def test_logits_are_compared_by_their_probabilities(definition):
    model = definition.model
    of_logits = Definition(model, "float32", ("float32",), ("logits",))
    for factor, message in ((1, None), (1.1, "differ by up to 0.0")):

        def run(images, factor=factor):
            return {"logits": model(images).numpy() * factor}

        exported = ExportedModel(Path("export"), of_logits.metadata, run)
        if message is None:
            check_export(exported, of_logits)
        else:
            with pytest.raises(ExportError, match=message):
                check_export(exported, of_logits)


@pytest.mark.parametrize(
    "before, after, passes",
    [(0.5, 0.25, True), (0.5, 0.125, False), (0.25, 1.0, True), (0.5, None, False)],
)
def test_a_loss_of_mean_iou(definition, monkeypatch, before, after, passes):
    def evaluate(model, dataset, verbose):
        return {"mean_iou": before if model is definition.model else after}

    monkeypatch.setattr(comparison, "evaluate", evaluate)
    given = (export_that(definition, lambda _: {}), definition, Limits(mean_iou_drop=0.25))
    source = data.Shapes(train=1, val=1)
    if passes:
        check_export(*given, source=source)
    else:
        with pytest.raises(ExportError, match=f"mean IoU 0.5000 of the model and {after or 0:.4f}"):
            check_export(*given, source=source)


@pytest.mark.parametrize(
    "limits, message",
    [(None, "^The mean IoU cannot be computed: no class"), (Limits(0), "^The export deviates")],
)
def test_no_mean_iou(definition, monkeypatch, limits, message):
    """It is not computed for an export that has failed before."""

    def evaluate(model, dataset, verbose):
        raise ValueError("no class")

    monkeypatch.setattr(comparison, "evaluate", evaluate)
    exported = export_that(definition, lambda o: {"probabilities": o["probabilities"] * 0.9999})
    with pytest.raises(ExportError, match=message):
        check_export(exported, definition, limits, source=data.Shapes(train=1, val=1))


def test_labelled_images_get_the_size_of_the_export(monkeypatch):
    definition = Definition(small_model(6), "float32", ("float32",), image_size=(48, 64))
    source, taken = data.Shapes(train=1, val=1), []

    def evaluate(model, dataset, verbose):
        taken.extend(dataset.as_numpy_iterator())
        return {"mean_iou": 1.0}

    monkeypatch.setattr(comparison, "evaluate", evaluate)
    check_export(export_that(definition, lambda _: {}), definition, source=source)
    ((_, whole),) = data.evaluation_dataset(source, "val").as_numpy_iterator()
    rows, columns = (
        (np.arange(n) + 0.5) * m // n for n, m in zip((48, 64), whole.shape[1:], strict=True)
    )
    for images, labels in taken:
        assert images.shape == (1, 48, 64, 3)
        np.testing.assert_array_equal(images, np.rint(images))
        nearest = whole[:, rows.astype(int)[:, None], columns.astype(int)]
        np.testing.assert_array_equal(labels, nearest)
    assert len(taken) == 2
    assert len(np.unique(labels)) > 1


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


def test_labels_of_nearly_equal_probabilities(logs):
    """A third of them each, but for a share of the difference of the logits."""
    model = small_model(3)
    head = model.get_layer("head")
    head.kernel.assign(head.kernel * 0)
    definition = Definition(model, "float32", ("float32",), ("labels",))
    exported = export_that(definition, lambda o: {"labels": o["labels"] * 0})
    head.bias.assign([0, 2e-4, 0])
    with pytest.warns(UserWarning, match="the same at every pixel"):
        check_export(exported, definition)
    assert logs.text.strip().endswith("100.00% of labels equal")
    head.bias.assign([0, 1e-3, 0])
    with (
        pytest.warns(UserWarning, match="the same at every pixel"),
        pytest.raises(ExportError, match=r" 0\.00% of labels equal\. The limits"),
    ):
        check_export(exported, definition)


def test_images_of_a_user_are_batches_of_the_model(tmp_path):
    path, info = tmp_path / "a.png", data.DatasetInfo(("a", "b"), value_range=(0, 100))
    pixels = pictures((5, 6, 3)) // 4
    path.write_bytes(encoded(pixels))
    for batch in (None, 4):
        of_file, of_array = image_batches([path, pixels], (batch, None, None, 3), info)
        assert of_file.shape == of_array.shape == (batch or 1, 5, 6, 3)
        np.testing.assert_array_equal(of_array[-1], pixels)
        np.testing.assert_array_equal(of_file[-1], np.rint(pixels * 2.55))
    for images in ([], path):
        with pytest.raises(ValueError, match="`images` must be a list of images that is not empty"):
            image_batches(images, (None, None, None, 3), info)


@pytest.mark.parametrize("splits, name", [(("val", "test"), "val"), (("a", "b"), "b")])
def test_the_split_that_is_scored(splits, name):
    assert scored_split(SimpleNamespace(splits=splits)) == name


def test_built_in_images_have_the_size_of_the_export():
    assert built_in_shapes((None, None, None, 3)) == [(2, 97, 129, 3), (2, 71, 65, 3)]
    assert built_in_shapes((1, 48, 64, 1)) == [(1, 48, 64, 1)]


def test_the_built_in_images_are_lively():
    for images in built_in_images((None, None, None, 3)):
        assert images.min() == 0
        assert images.max() == 255
        assert images.std() > 50
        assert not np.array_equal(images[0], images[1])
    with pytest.warns(UserWarning, match="the same at every pixel"):
        probabilities_of(tf.zeros(images.shape), images.shape)
    absent = images * np.float32([1, 1, 0]) - np.float32([0, 0, 1000])  # one of three classes
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probabilities_of(tf.constant(absent), images.shape)


@pytest.mark.parametrize(
    "shape, value, message",
    [((1, 4, 5, 3), np.nan, "finite"), ((1, 2, 5, 3), 0, "the input's size")],
)
def test_logits_that_cannot_be_compared(shape, value, message):
    with pytest.raises(ExportError, match=f"The model must return .*{message}.* Received: "):
        probabilities_of(tf.fill(shape, np.float32(value)), (1, 4, 5, 3))


def test_settings_of_limits():
    with pytest.raises(ValueError, match="`agreement` must be a number in"):
        Limits(agreement=98)
