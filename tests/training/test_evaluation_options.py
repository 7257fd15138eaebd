"""Test-time augmentation and boundary scores of `evaluate` and `predict`, and what they print."""

from __future__ import annotations

import json
import re

import keras
import numpy as np
import pytest
from PIL import Image

import keras_deeplab
from keras_deeplab import MultiScale, data, metrics
from keras_deeplab.cli import evaluate, predict, train
from keras_deeplab.evaluation import scores_table
from keras_deeplab.models.multi_scale import with_test_time_augmentation


@pytest.fixture(scope="module")
def shapes():
    return data.Shapes(train=1, val=2)


@pytest.fixture(scope="module")
def model():
    """Random logits that differ from pixel to pixel; the last class is never the largest."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Rescaling(1 / 100, -1)(inputs)
    x = keras.layers.Conv2D(8, 5, padding="same", activation="relu")(x)
    bias = keras.initializers.Constant([0, 0, 0, 0, 0, -100])
    outputs = keras.layers.Conv2D(6, 5, padding="same", bias_initializer=bias)(x)
    return keras.Model(inputs, outputs)


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.keras"
    model.save(path)
    return path


def rows(table):
    """The cells of each line by its name."""
    return {
        line[2:30].strip(): line[30:].split() for line in table.splitlines() if line[:2] == "  "
    }


def test_evaluate_at_scales_mirrored_and_along_boundaries(
    model, file, shapes, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(data, "open_source", lambda name: shapes)
    more = ["--scales", "0.5", "1", "--flip", "--boundary", "--output", str(tmp_path)]
    assert evaluate.main(["--model", str(file), *more]) == 0
    stored = json.loads((tmp_path / "metrics.json").read_text())
    assert stored["test_time_augmentation"] == [
        {"scales": [0.5, 1.0], "flip": True, "fusion": "mean"}
    ]
    several = MultiScale(model, (0.5, 1.0), fusion="mean", flip=True)
    dataset = data.evaluation_dataset(shapes, "val")
    classes = shapes.info.classes
    expected = keras_deeplab.evaluate(several, dataset, classes, verbose=0, boundary=True)
    for name in ("mean_iou", "boundary_mean_iou"):
        assert stored[name] == pytest.approx(expected[name], abs=1e-3)
    plain = keras_deeplab.evaluate(model, dataset, classes, verbose=0)
    assert abs(plain["mean_iou"] - expected["mean_iou"]) > 5e-3
    out = capsys.readouterr().out
    assert re.search(rf"  boundary mean IoU +{stored['boundary_mean_iou']:.3f}\n", out)
    assert out.count("of a boundary") == 6


def test_the_table_shows_a_class_that_is_never_predicted():
    confusion = np.array([[70, 10, 0], [5, 10, 0], [5, 0, 0]])
    report = metrics.scores(confusion, ["sky", "road", "pole"])
    report |= {"images": 2, "true_share": {"sky": 0.8, "road": 0.15, "pole": 0.05}}
    found = rows(scores_table(report, "val"))
    assert found["sky"] == [f"{70 / 90:.3f}", "80.00%", "80.00%"]
    assert found["road"] == ["0.400", "20.00%", "15.00%"]
    assert found["pole"] == ["0.000", "0.00%", "5.00%"]
    assert found["frequency-weighted IoU"] == [f"{report['frequency_weighted_iou']:.3f}"]
    assert found["pixel accuracy"] == ["0.800"]
    report["boundary_per_class"] = {"sky": 0.5, "road": 0.25, "pole": None}
    report |= {"boundary_mean_iou": 0.375, "trimap_mean_iou": {"1": 0.125, "32": None}}
    table = scores_table(report, "val")
    assert [line.split()[-1] for line in table.splitlines()[2:5]] == ["0.500", "0.250", "absent"]
    assert re.search(r"\n  mean IoU within 1 px of a boundary +0.125\n", table)
    assert re.search(r"\n  mean IoU within 32 px of a boundary +absent$", table)


def test_scores_of_unlabelled_images_can_be_printed():
    report = metrics.scores(np.zeros((2, 2)), ["a", "b"])
    report |= {"images": 2, "true_share": {"a": None, "b": None}}
    assert scores_table(report, "test").count("absent") == 9


def test_scales_are_resized_as_the_model_resizes():
    inputs = x = keras.Input((None, None, 3))
    for _ in range(5):
        x = keras.layers.Conv2D(4, 3, 2, padding="same")(x)
    from_authors = keras_deeplab.DeepLabV3(
        2, keras.Model(inputs, x), aspp_filters=8, aspp_rates=(), align_corners=True
    )
    assert with_test_time_augmentation(from_authors, None) is from_authors
    seen = with_test_time_augmentation(from_authors, [0.5, 1.0])
    assert seen.get_config()["align_corners"] is True
    assert (seen.get_config()["fusion"], seen.get_config()["flip"]) == ("mean", False)
    mirrored = with_test_time_augmentation(from_authors, None, flip=True)
    assert mirrored.get_config()["scales"] == (1.0,)


def test_predict_takes_the_same_options(model, file, tmp_path):
    photo = tmp_path / "a.png"
    pixels = np.random.default_rng(0).integers(0, 255, (31, 45, 3), "uint8")
    Image.fromarray(pixels).save(photo)
    arguments = ["--model", str(file), "--images", str(photo), "--output", str(tmp_path / "out")]
    assert predict.main([*arguments, "--flip", "--scales", "1", "1.5"]) == 0
    found = np.asarray(Image.open(tmp_path / "out" / "a_labels.png"))
    expected = keras_deeplab.predict(MultiScale(model, (1, 1.5), fusion="mean", flip=True), pixels)
    assert (found == expected).mean() > 0.999
    assert (found == keras_deeplab.predict(model, pixels)).mean() < 0.99


def test_scales_are_checked(file, capsys):
    for given in (["0"], ["x"]):
        with pytest.raises(SystemExit):
            evaluate.main(["--model", str(file), "--scales", *given])
    assert "must be a positive number. Received: '0'" in capsys.readouterr().err
    for command in (predict.main, evaluate.main, train.main):  # before three hours of training
        with pytest.raises(SystemExit):
            command(["--scales", "1", "1.0"])
        assert "--scales: `scales` must be distinct" in capsys.readouterr().err
