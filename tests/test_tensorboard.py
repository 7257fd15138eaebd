from __future__ import annotations

import importlib.util

import keras
import numpy as np
import pytest
import tensorflow as tf
from event_files import events

import keras_deeplab
from keras_deeplab.losses import CrossEntropy
from keras_deeplab.metrics import SegmentationMetrics, scores
from keras_deeplab.pictures import comparison_picture, confusion_picture

NAMES = ["sky", "traffic light", "car", "ghost"]
COLORS = [(0, 0, 200), (250, 0, 0), (0, 200, 10), (9, 9, 9)]


def brightest_channel(*metrics, eager=True):
    """A model that returns its pixels and learns nothing."""
    inputs = keras.Input((None, None, 3))
    outputs = keras.layers.Dense(4, kernel_initializer="identity", use_bias=False)(inputs)
    model = keras.Model(inputs, outputs)
    optimizer = keras.optimizers.SGD(0.0)
    model.compile(optimizer, CrossEntropy(), metrics=list(metrics), run_eagerly=eager)
    return model


def pairs(count, seed, batch=2):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 8, 12, 3)).astype(np.float32)
    guessed = rng.integers(0, 3, (count, 8, 12))
    labels = np.where(rng.random((count, 8, 12)) < 0.6, images.argmax(-1), guessed)
    labels[rng.random(labels.shape) < 0.1] = 255
    return images, labels, tf.data.Dataset.from_tensor_slices((images, labels)).batch(batch)


def confusion_of(images, labels):
    valid = labels != 255
    confusion = np.zeros((4, 4), int)
    np.add.at(confusion, (labels[valid], images.argmax(-1)[valid]), 1)
    return confusion


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Two epochs, and what they wrote."""
    folder = tmp_path_factory.mktemp("logs")
    train, val = pairs(4, 0), pairs(6, 1)
    model = brightest_channel(SegmentationMetrics(4, NAMES), eager=False)
    report = keras_deeplab.TensorBoard(folder, val[2], colors=COLORS, num_pictures=3)
    model.fit(
        train[2], validation_data=val[2], epochs=2, shuffle=False, verbose=0, callbacks=[report]
    )
    return train, val, events(folder / "train"), events(folder / "validation")


@pytest.mark.slow
@pytest.mark.parametrize("part", ["train", "validation"])
def test_each_class_has_its_curves_in_two_groups(written, part):
    (images, labels, _), found = written[part == "validation"], written[2 + (part == "validation")]
    expected = scores(confusion_of(images, labels), NAMES)
    for epoch in range(2):
        for name, key in zip(NAMES, ["sky", "traffic_light", "car", "ghost"], strict=True):
            share = expected["predicted_share"][name]
            assert found[f"epoch_predicted_share/{key}"][epoch] == pytest.approx(share, rel=1e-6)
            if name != "ghost":  # in neither truth nor prediction
                iou = expected["per_class"][name]
                assert found[f"epoch_iou/{key}"][epoch] == pytest.approx(iou, rel=1e-6)
        assert found["epoch_mean_iou"][epoch] == pytest.approx(expected["mean_iou"], rel=1e-6)
    assert "epoch_iou/ghost" not in found
    assert 0.2 < expected["mean_iou"] < 0.9
    assert not [tag for tag in found if "sky" in tag.partition("/")[0]]
    assert "epoch_loss" in found


def test_pictures_of_the_validation_images(written):
    images, labels, _ = written[1]
    confusion = confusion_picture(confusion_of(images, labels), NAMES)
    shown = comparison_picture(images[:3], labels[:3], images[:3].argmax(-1), NAMES, COLORS)
    for epoch in range(2):
        np.testing.assert_array_equal(written[3]["confusion_matrix"][epoch], confusion)
        np.testing.assert_array_equal(written[3]["predictions"][epoch], shown)
    assert "confusion_matrix" not in written[2]


@pytest.mark.slow
@pytest.mark.parametrize("freq, drawn", [(2, {1}), ([1, 3], {0, 2})])
def test_without_validation_names_and_metric(tmp_path, freq, drawn):
    images, labels, dataset = pairs(3, 0, batch=3)
    model = brightest_channel()
    report = keras_deeplab.TensorBoard(
        tmp_path, dataset.unbatch(), num_pictures=2, picture_freq=freq
    )
    model.fit(dataset, epochs=3, shuffle=False, verbose=0, callbacks=[report])
    assert set(events(tmp_path / "train")) == {"epoch_loss", "epoch_learning_rate"}
    found = events(tmp_path / "validation")
    assert set(found) == {"predictions"}
    assert set(found["predictions"]) == drawn
    expected = comparison_picture(images[:2], labels[:2], images[:2].argmax(-1), list("0123"))
    np.testing.assert_array_equal(found["predictions"][max(drawn)], expected)


@pytest.mark.slow
def test_scores_of_other_validations_are_not_those_of_an_epoch(tmp_path):
    images, labels, dataset = pairs(4, 2)
    metrics = [SegmentationMetrics(4, NAMES), SegmentationMetrics(4, NAMES, name="all")]
    model = brightest_channel(*metrics)
    report = keras_deeplab.TensorBoard(tmp_path, update_freq="batch", histogram_freq=1)
    model.evaluate(pairs(2, 3)[2], verbose=0, callbacks=[report])
    options = {"validation_freq": 2, "epochs": 3, "shuffle": False, "verbose": 0}
    model.fit(dataset, validation_data=dataset, callbacks=[report], **options)
    found = events(tmp_path / "validation")
    expected = scores(confusion_of(images, labels), NAMES)["per_class"]
    for name in NAMES[:3]:
        for prefix in ("", "all_"):
            values = found[f"epoch_{prefix}iou/{name.replace(' ', '_')}"]
            assert values == {1: pytest.approx(expected[name], rel=1e-6)}
    assert set(found["confusion_matrix"]) == {1}
    found = events(tmp_path / "train")  # with Keras' own options
    assert set(found["batch_mean_iou"]) == {1, 2, 3, 4, 5, 6}
    assert "batch_iou/sky" in found
    assert any(tag.endswith("/histogram") for tag in found)


def test_what_is_missing_or_wrong_is_named(tmp_path, monkeypatch):
    images, _, dataset = pairs(2, 0)
    for arguments, message in (
        ({"num_pictures": 0}, "`num_pictures` must be a positive .* num_pictures=0"),
        ({"picture_freq": 1.5}, "`picture_freq` must be a positive .* picture_freq=1.5"),
        ({"dataset": dataset.repeat()}, "finite"),
        ({"dataset": images}, "Received: .*ndarray"),
    ):
        with pytest.raises(ValueError, match=message):
            keras_deeplab.TensorBoard(tmp_path, **arguments)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install keras_deeplab\[tensorboard\]"):
        keras_deeplab.TensorBoard(tmp_path)
