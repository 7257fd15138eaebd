from __future__ import annotations

import base64
import io
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from inference.test_predicting import channel_model
from PIL import Image
from test_audit_page import read

from keras_deeplab import data, evaluate
from keras_deeplab.confidence import margin
from keras_deeplab.evaluation_page import evaluation_page
from keras_deeplab.inference.functions import ModelFunctions


@pytest.fixture(scope="module")
def shown():
    """A page of 20 images, its report, the model and the source."""

    class Named(data.Shapes):
        info = data.DatasetInfo(("<b>", *data.Shapes().info.classes[1:]), data.Shapes().info.colors)

        def names(self, split):
            return [f"image <{number}>" for number in range(len(super().names(split)))]

    source = Named(train=1, val=20)
    model = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Rescaling(1 / 64)])
    model.add(channel_model(source.info.num_classes))
    report = evaluate(
        model,
        data.evaluation_dataset(source),
        class_names=source.info.classes,
        boundary=True,
        calibration=True,
        confusion=True,
        image_names=source.names("val"),
        verbose=0,
    )
    return evaluation_page(report, model, source, "val", "a & <i>"), report, model, source


@pytest.mark.slow
def test_an_image_is_shown_once(shown):
    _, report, model, source = shown
    few = {**report, "worst_images": report["worst_images"][:14]}
    few["best_images"] = few["worst_images"][::-1]
    found, _ = read(evaluation_page(few, model, source, "val", "few"))
    assert re.findall(r"(image <\d+>): mean", " ".join(found)) == [
        row["name"] for row in (*few["worst_images"][:12], *few["best_images"][:2])
    ]


def test_the_page_has_the_figures_and_no_foreign_markup(shown):
    page, report, _, _ = shown
    found, tags = read(page)
    text = " ".join(found)
    assert not [tag for tag, _ in tags if tag in ("script", "link", "b", "i")]
    assert "a & <i>" in text
    assert "20 images of val" in text
    for title, key in (("mean IoU", "mean_iou"), ("boundary mean IoU", "boundary_mean_iou")):
        assert f"{title} {report[key]:.3f}" in text
    assert f"mean F1 {report['mean_f1']:.3f} pixel accuracy {report['pixel_accuracy']:.3f}" in text
    assert f"{report['expected_calibration_error']:.3f}" in text
    assert "class IoU boundary IoU F1 precision recall predicted in truth" in text
    for name, value in report["per_class"].items():
        others = [report[key][name] for key in ("boundary_per_class", "f1", "precision", "recall")]
        shown = [f"{one:.3f}" for one in others if one is not None]
        assert re.search(f"{re.escape(name)} +{value:.3f} +{' +'.join(shown)}", text)


def test_the_bars_of_the_diagram_are_the_bins(shown):
    page, report, _, _ = shown
    bars = [attrs for tag, attrs in read(page)[1] if tag == "rect"]
    assert len(bars) == len(report["reliability"]) > 3
    for bar, row in zip(bars, report["reliability"], strict=True):
        assert 0 < 300 * row["confidence"] - float(bar["x"]) <= 300 / 15 + 0.1
        assert float(bar["height"]) == pytest.approx(300 * row["accuracy"], abs=0.1)
        assert float(bar["y"]) + float(bar["height"]) == pytest.approx(300, abs=0.2)


def test_worst_and_best_images_are_shown_with_their_maps(shown):
    page, report, model, source = shown
    found, tags = read(page)
    captions = re.findall(r"(image <\d+>): mean IoU (0\.\d{3})", " ".join(found))
    shown = [*report["worst_images"][:12], *report["best_images"][:6]]
    assert captions == [(row["name"], f"{row['mean_iou']:.3f}") for row in shown]
    assert len({row["index"] for row in shown}) == 18
    confusion, *figures = [attrs["src"] for tag, attrs in tags if tag == "img"]
    assert confusion.startswith("data:image/png;base64,")
    assert len(figures) == 18
    pairs = list(source.dataset("val").as_numpy_iterator())
    for place in (0, 11, 12):
        image, truth = pairs[shown[place]["index"]]
        decoded = Image.open(io.BytesIO(base64.b64decode(figures[place].split(",")[1])))
        cells = np.split(np.asarray(decoded).astype(int), 4, axis=1)
        probabilities = keras.ops.softmax(model(image[None].astype(np.float32)))[0].numpy()
        colors = np.array(source.info.colors)
        expected = (
            image,
            np.where((truth == 255)[..., None], image, colors[np.where(truth == 255, 0, truth)]),
            colors[probabilities.argmax(-1)],
            255 * margin(probabilities)[..., None].repeat(3, -1),
        )
        for cell, pixels in zip(cells, expected, strict=True):
            assert np.abs(cell - pixels).mean() < 20
            assert np.abs(cell - pixels).mean() < 0.5 * np.abs(cell - pixels.mean((0, 1))).mean()


def test_an_image_that_does_not_fit_is_shown_in_windows(shown, monkeypatch):
    class Large(data.Shapes):
        def dataset(self, *arguments):
            pairs = super().dataset(*arguments)
            return pairs.map(lambda *pair: tuple(tf.repeat(one, 5, 1) for one in pair))

    _, report, model, _ = shown
    source, sizes, run = Large(train=1, val=20), [], ModelFunctions._run

    def counted(self, pixels):
        sizes.append(pixels.shape[1:3])
        return run(self, pixels)

    monkeypatch.setattr(ModelFunctions, "_run", counted)
    whole = evaluation_page(report, model, source, "val", "whole")
    assert max(width for _, width in sizes) > 350
    monkeypatch.setattr("keras_deeplab.inference.windows.MEMORY", 1)
    sizes.clear()
    parts = evaluation_page(report, model, source, "val", "whole")
    assert max(width for _, width in sizes) <= 256
    assert len(parts) == pytest.approx(len(whole), rel=0.01)
