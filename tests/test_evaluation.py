"""Scores of a model on labelled images, and how they are printed."""

from __future__ import annotations

import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from inference.test_predicting import counting_model

import keras_deeplab
from keras_deeplab import metrics
from keras_deeplab.crf import DenseCRF, search
from keras_deeplab.evaluation import evaluate, prediction_settings, scores_table, search_crf
from keras_deeplab.inference.functions import ModelFunctions
from keras_deeplab.models.multi_scale import at_image_scale, with_test_time_augmentation

SIZES = [(9, 7), (4, 12), (1, 1), (20, 3), (9, 7)]
NAMES = ["red", "green", "blue"]


def pairs(sizes, seed=0):
    rng = np.random.default_rng(seed)
    for height, width in sizes:
        pixels = rng.integers(0, 256, (height, width, 3)).astype(np.float32)
        labels = np.where(rng.random((height, width)) < 0.6, pixels.argmax(-1), 1)
        labels[rng.random((height, width)) < 0.1] = 255
        yield pixels, labels.astype(np.int32)


def dataset_of(items):
    signature = (tf.TensorSpec((None, None, 3)), tf.TensorSpec((None, None), tf.int32))
    return tf.data.Dataset.from_generator(lambda: iter(items), output_signature=signature)


@pytest.fixture(scope="module")
def traced():
    """A model whose class is the brightest channel, and the shapes that it was traced with."""
    return counting_model()


def test_differing_sizes_equal_numpy_and_trace_once(traced, capsys):
    model, traces = traced
    items = list(pairs(SIZES))
    report = evaluate(model, dataset_of(items).batch(1), NAMES, verbose=1)
    assert traces == [(None, None, None, 3)]
    assert re.search("5/5.* mean_iou: ", capsys.readouterr().out)
    truth = np.concatenate([labels.ravel() for _, labels in items])
    predicted = np.concatenate([pixels.argmax(-1).ravel() for pixels, _ in items])
    confusion = np.zeros((3, 3), int)
    np.add.at(confusion, (truth[truth != 255], predicted[truth != 255]), 1)
    shares = confusion.sum(1) / confusion.sum()
    assert report == {
        **metrics.scores(confusion, NAMES),
        "images": len(SIZES),
        "pixels": int((truth != 255).sum()),
        "true_share": pytest.approx(dict(zip(NAMES, shares, strict=True))),
        "worst_images": report["worst_images"],
        "best_images": report["worst_images"][::-1],
    }
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert 0 < report["mean_iou"] < 1


@pytest.mark.slow
def test_batches_single_images_trailing_axis_and_another_ignored_label(traced, capsys):
    model, _ = traced
    items = list(pairs([(6, 5)] * 5))
    single = evaluate(model, dataset_of(items), verbose=0)
    assert single["images"] == 5
    assert capsys.readouterr().out == ""
    batched = dataset_of(items).batch(2)
    trailing = batched.map(lambda x, y: (tf.cast(x, tf.uint8), y[..., None]))
    nine = batched.map(lambda x, y: (x, tf.where(y == 255, 9, y)))
    for dataset, ignore_label in ((batched, 255), (trailing, 255), (nine, 9)):
        assert evaluate(model, dataset, ignore_label=ignore_label, verbose=0) == single
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"labels must be in 0\.\.2"):
        evaluate(model, nine, verbose=0)


def mean_iou_by_sets(truth, predicted):
    valid = truth != 255
    ious = [
        (valid & (truth == c) & (predicted == c)).sum() / union.sum()
        for c in range(3)
        if (union := valid & ((truth == c) | (predicted == c))).any()
    ]
    return np.mean(ious)


@pytest.mark.slow
def test_the_worst_images_come_first_whatever_the_batches(traced):
    items = list(pairs([(6, 5)] * 25))
    items[3][1][:] = 255
    expected = {
        i: mean_iou_by_sets(labels, pixels.argmax(-1))
        for i, (pixels, labels) in enumerate(items)
        if i != 3
    }
    names = [f"image {index}" for index in range(25)]
    for size in (1, 4):
        dataset = dataset_of(items).batch(size)
        report = evaluate(traced[0], dataset, image_names=names, verbose=0)
        worst, best = report["worst_images"], report["best_images"]
        assert [row["mean_iou"] for row in worst] == pytest.approx(sorted(expected.values())[:20])
        assert [r["mean_iou"] for r in best] == pytest.approx(sorted(expected.values())[:-21:-1])
        for row in worst + best:
            assert row["name"] == f"image {row['index']}"
            assert row["mean_iou"] == pytest.approx(expected[row["index"]])
    assert "name" not in evaluate(traced[0], dataset, verbose=0)["worst_images"][0]
    with pytest.raises(ValueError, match="`image_names` must be 25 names"):
        evaluate(traced[0], dataset, image_names=names[1:], verbose=0)


def test_calibration_error_and_confusion_are_those_of_the_probabilities(traced):
    items = list(pairs(SIZES))
    dataset = dataset_of([(pixels / 64, labels) for pixels, labels in items]).batch(1)
    report = evaluate(traced[0], dataset, NAMES, verbose=0, calibration=True, confusion=True)
    plain = evaluate(traced[0], dataset, NAMES, verbose=0)
    assert {key: report[key] for key in plain} == plain
    probabilities = np.concatenate([tf.nn.softmax(p.reshape(-1, 3) / 64).numpy() for p, _ in items])
    truth = np.concatenate([labels.ravel() for _, labels in items])
    valid, confidence = truth != 255, probabilities.max(-1)
    bins, total = np.ceil(15 * confidence), 0.0
    for number in range(1, 16):
        inside = valid & (bins == number)
        if inside.any():
            right = probabilities.argmax(-1)[inside] == truth[inside]
            total += inside.sum() * abs(confidence[inside].mean() - right.mean())
    assert report["expected_calibration_error"] == pytest.approx(total / valid.sum(), rel=1e-5)
    assert total / valid.sum() > 0.01
    assert sum(row["pixels"] for row in report["reliability"]) == valid.sum()
    assert metrics.scores(np.array(report["confusion"]), NAMES)["per_class"] == report["per_class"]
    assert "expected calibration error" in scores_table(report, "val")
    assert json.loads(json.dumps(report, allow_nan=False)) == report


@pytest.mark.parametrize("calibration", [False, True])
def test_an_image_that_does_not_fit_is_evaluated_in_windows(traced, monkeypatch, calibration):
    model, _ = traced
    images = dataset_of(list(pairs([(300, 270), (20, 30)]))).batch(1)
    whole = evaluate(model, images, verbose=0, calibration=calibration)
    sizes, run = [], ModelFunctions._run

    def counted(self, part):
        sizes.append(part.shape[1:3])
        return run(self, part)

    monkeypatch.setattr(ModelFunctions, "_run", counted)
    monkeypatch.setattr("keras_deeplab.inference.windows.MEMORY", 270 * 270 * 48)
    found = evaluate(model, images, verbose=0, calibration=calibration)
    if calibration:  # of probabilities that are rounded otherwise
        errors = [report.pop("expected_calibration_error") for report in (found, whole)]
        assert errors[0] == pytest.approx(errors[1], rel=1e-4)
        bins = [[row["pixels"] for row in report.pop("reliability")] for report in (found, whole)]
        np.testing.assert_allclose(*bins, atol=5)
    assert found == whole
    assert max(sizes) == (192, 192)
    assert sizes[-1] == (20, 30)


def test_a_crf_is_searched_on_the_first_images(traced):
    items = [(p / 64, np.where(labels == 255, 9, labels)) for p, labels in pairs(SIZES)]
    dataset, start = dataset_of(items).batch(1), DenseCRF(steps=2)
    found = search_crf(traced[0], dataset, 2, start, ignore_label=9)
    samples = [
        (pixels, keras_deeplab.predict(traced[0], pixels, probabilities=True), labels)
        for pixels, labels in items[:2]
    ]
    assert found == search(samples, start=start, ignore_label=9, verbose=0)
    assert found.best.steps == 2
    assert len(set(found.mean_iou.values())) > 1
    with pytest.raises(ValueError, match="`images` must be below the 5 images of the dataset"):
        search_crf(traced[0], dataset, 5)


def test_an_ignored_class_is_ignored_at_boundaries_too(traced):
    items = list(pairs(SIZES))
    dataset = dataset_of(items).batch(1).map(lambda x, y: (x, tf.where(y == 255, 0, y)))
    found = evaluate(traced[0], dataset, ignore_label=0, verbose=0, boundary=True)
    moved = dataset.map(lambda x, y: (x, tf.where(y == 0, 255, y)))
    assert found == evaluate(traced[0], moved, verbose=0, boundary=True)
    assert 0 < found["boundary_mean_iou"] < 1


def test_ignored_pixels_alone(traced):
    items = [(pixels, np.full_like(labels, 255)) for pixels, labels in pairs(SIZES)]
    report = evaluate(traced[0], dataset_of(items), verbose=0, calibration=True)
    assert report["pixels"] == 0
    assert report["worst_images"] == report["best_images"] == report["reliability"] == []
    assert report["expected_calibration_error"] is None
    assert report["true_share"] == report["per_class"] == {"0": None, "1": None, "2": None}
    assert scores_table(report, "test").count("absent") == 23


def test_wrong_arguments(traced):
    model, dataset = traced[0], dataset_of(list(pairs(SIZES)))
    for wrong, names, message in (
        (dataset.take(0), None, "empty"),
        (dataset.repeat(), None, "finite"),
        (dataset.map(lambda x, y: x), None, "images, labels"),
        (dataset.map(lambda x, y: {"image": x, "label": y}), None, "images, labels"),
        (dataset.map(lambda x, y: ({"image": x}, {"label": y})), None, "images, labels"),
        (dataset.map(lambda x, y: (x, (y, y))), None, "images, labels"),
        (dataset, ["a", "b"], "3 different names"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(model, wrong, names, verbose=0)


def test_images_of_another_size_than_the_models_are_refused():
    inputs = keras.Input((24, 32, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(3, 1)(inputs))
    items = [(np.zeros((20, 32, 3), np.float32), np.zeros((20, 32), np.int32))]
    rule = r"of images of the model's input shape \(None, 24, 32, 3\).*\(1, 20, 32, 3\)"
    for function in (evaluate, keras_deeplab.calibrate):
        with pytest.raises(ValueError, match=rule):
            function(model, dataset_of(items))


@pytest.mark.slow
def test_images_that_are_divided_by_255_are_reported():
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(3, 1)(inputs))
    labels = np.zeros((20, 32), np.int32)
    for function in (evaluate, keras_deeplab.calibrate):
        with pytest.warns(UserWarning, match=r"values up to 0\.5, almost black. Do not divide"):
            function(model, dataset_of([(np.full((20, 32, 3), 0.5, np.float32), labels)]))


def test_the_table_shows_a_class_that_is_never_predicted():
    confusion = np.array([[70, 10, 0], [5, 10, 0], [5, 0, 0]])
    report = metrics.scores(confusion, ["sky", "road", "pole"])
    report |= {"images": 2, "true_share": {"sky": 0.8, "road": 0.15, "pole": 0.05}}
    assert len(scores_table(report, "val").splitlines()) == 9
    calibrated = report | {"expected_calibration_error": 0.125}  # as of every training
    assert max(map(len, scores_table(calibrated, "val").splitlines())) <= 72
    report["boundary_per_class"] = {"sky": 0.5, "road": 0.25, "pole": None}
    report |= {"boundary_mean_iou": 0.375, "trimap_mean_iou": {"1": 0.125, "32": None}}
    assert [re.split("  +", line.strip()) for line in scores_table(report, "val").splitlines()] == [
        ["Scores per class on the 2 images of val:"],
        ["IoU", "boundary IoU", "F1", "precision", "recall", "predicted", "in truth"],
        ["sky", f"{70 / 90:.3f}", "0.500", "0.875", "0.875", "0.875", "80.00%", "80.00%"],
        ["road", "0.400", "0.250", "0.571", "0.500", "0.667", "20.00%", "15.00%"],
        ["pole", "0.000", "absent", "0.000", "absent", "0.000", "0.00%", "5.00%"],
        ["mean IoU", f"{report['mean_iou']:.3f}"],
        ["frequency-weighted IoU", f"{report['frequency_weighted_iou']:.3f}"],
        ["pixel accuracy", "0.800"],
        ["mean F1", f"{report['mean_f1']:.3f}"],
        ["boundary mean IoU", "0.375"],
        ["mean IoU within 1 px of a boundary", "0.125"],
        ["mean IoU within 32 px of a boundary", "absent"],
    ]
    known_before = report.keys() - {"mean_f1", "f1", "precision", "recall"}
    older = scores_table({key: report[key] for key in known_before}, "val")
    assert older.splitlines()[1].split() == "IoU boundary IoU predicted in truth".split()
    assert "F1" not in older


def test_names_of_classes_are_escaped_in_the_table():
    report = metrics.scores(np.eye(2), ["sky\n\x1b[31m", "road"])
    report |= {"images": 2, "true_share": dict.fromkeys(report["per_class"], 0.5)}
    lines = scores_table(report, "val").splitlines()
    assert lines[2].split()[:2] == [r"sky\n\x1b[31m", "1.000"]
    assert len(lines[2]) == len(lines[3])


def test_settings_list_all_views_from_the_outside():
    inputs = keras.Input((None, None, 3))
    network = keras.Model(inputs, keras.layers.Conv2D(2, 1)(inputs))
    several = keras_deeplab.MultiScale(at_image_scale(network, 0.5), (0.5, 1.0))
    settings = prediction_settings(with_test_time_augmentation(several, None, flip=True))
    assert settings["image_scale"] == 0.5
    assert settings["test_time_augmentation"] == [
        {"scales": (1.0,), "flip": True, "fusion": "mean"},
        {"scales": (0.5, 1.0), "flip": False, "fusion": "max"},
    ]


def test_scales_are_resized_as_the_model_resizes():
    inputs = x = keras.Input((None, None, 3))
    for _ in range(5):
        x = keras.layers.Conv2D(4, 3, 2, padding="same")(x)
    from_authors = keras_deeplab.DeepLabV3(
        2, keras.Model(inputs, x), aspp_filters=8, aspp_rates=(), align_corners=True
    )
    assert with_test_time_augmentation(from_authors, None) is from_authors
    seen = with_test_time_augmentation(from_authors, [0.5, 1.0])
    assert seen.get_layer("logits_0_5").align_corners is True
    assert (seen.get_config()["fusion"], seen.get_config()["flip"]) == ("mean", False)
    mirrored = with_test_time_augmentation(seen, None, flip=True)  # in place of the scales
    assert mirrored.model is from_authors
    assert with_test_time_augmentation(mirrored, [1]) is from_authors
    fused = keras_deeplab.MultiScale(from_authors, (0.5, 1.0))  # by the maximum: part of the model
    assert with_test_time_augmentation(fused, [1]) is fused
    assert mirrored.get_config()["scales"] == (1.0,)
