from __future__ import annotations

import csv
import json
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_deeplab.losses import CrossEntropy
from keras_deeplab.metrics import SegmentationMetrics, scores

NAMES = ["sky", "traffic light", "car", "ghost"]
KEYS = ["iou_sky", "iou_traffic_light", "iou_car", "iou_ghost"]
SHARES = [key.replace("iou", "predicted_share") for key in KEYS]
TOTALS = ["mean_iou", "pixel_accuracy", "frequency_weighted_iou"]


def reference(truth, predicted, num_classes, ignore_label=255):
    """Scores from sets of pixels, without a confusion matrix."""
    valid = truth != ignore_label
    per_class = []
    for c in range(num_classes):
        union = ((truth == c) | (predicted == c)) & valid
        both = (truth == c) & (predicted == c) & valid
        per_class.append(both.sum() / union.sum() if union.any() else np.nan)
    frequencies = [(truth[valid] == c).mean() for c in range(num_classes)]
    totals = {
        "mean_iou": np.nanmean(per_class),
        "pixel_accuracy": (truth == predicted)[valid].mean(),
        "frequency_weighted_iou": np.nansum(np.multiply(frequencies, per_class)),
    }
    return totals, per_class, [(predicted[valid] == c).mean() for c in range(num_classes)]


def random_maps(seed, shape=(2, 9, 7), classes=3):
    """Truth with ignored pixels and a prediction that is right at about half of the pixels."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, shape)
    predicted = np.where(rng.random(shape) < 0.5, truth, rng.integers(0, classes, shape))
    truth[rng.random(shape) < 0.2] = 255
    return truth, predicted


def as_logits(predicted, classes):
    return (np.eye(classes)[predicted] * 3 - 1).astype(np.float32)


def check(result, truth, predicted, classes=4, keys=KEYS):
    totals, per_class, shares = reference(truth, predicted, classes)
    for key, value in totals.items():
        np.testing.assert_allclose(result[key], value, rtol=1e-6, err_msg=key)
    np.testing.assert_allclose([result[key] for key in keys], per_class, rtol=1e-6)
    predicted_shares = [result[key.replace("iou", "predicted_share")] for key in keys]
    np.testing.assert_allclose(predicted_shares, shares, rtol=1e-6)


@pytest.mark.parametrize("kind, jit", [("logits", False), ("labels", False), ("float16", True)])
def test_streams_to_the_reference(kind, jit):
    metric = SegmentationMetrics(4, NAMES)
    update = metric.update_state
    if jit:
        update = tf.function(update, jit_compile=True, autograph=False)
    batches = [random_maps(seed) for seed in range(3)]
    for truth, predicted in batches:
        given = as_logits(predicted, 4) if kind != "labels" else predicted
        update(truth, given.astype(np.float16) if kind == "float16" else given)
    check(metric.result(), *(np.concatenate(maps) for maps in zip(*batches, strict=True)))
    assert np.isnan(metric.result()["iou_ghost"])  # in neither: left out of the mean
    metric.reset_state()
    assert np.isnan(metric.result()["mean_iou"])
    update(*batches[0])
    check(metric.result(), *batches[0])


def test_pixels_of_logits_that_are_nan_are_not_class_0():
    truth, predicted = random_maps(0)
    logits = as_logits(predicted, 4)
    logits[0, 0, 0, 1] = np.nan
    for label, expected in ((255, False), (0, True)):
        metric, truth[0, 0, 0] = SegmentationMetrics(4), label
        metric.update_state(truth, logits)
        assert np.isnan(metric.result()["pixel_accuracy"]) == expected
    metric.reset_state()
    metric.update_state(truth, logits, 1.0 - np.isnan(logits).any(-1))
    assert np.isfinite(metric.result()["pixel_accuracy"])
    with pytest.raises(ValueError, match="`y_true` must be a label map"):
        metric.update_state(truth, np.eye(4, dtype=int)[predicted])


def test_a_class_255_is_named_where_it_is_ignored():
    with pytest.warns(UserWarning, match="Class 255 of 300 is not counted"):
        SegmentationMetrics(300)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for options in ({"num_classes": 300, "ignore_label": None}, {"num_classes": 255}):
            SegmentationMetrics(**options)


def test_a_class_that_is_only_predicted_counts_as_zero_and_not_at_ignored_pixels():
    truth, predicted = random_maps(0)
    metric = SegmentationMetrics(4, NAMES)
    metric.update_state(truth, np.where(truth == 255, 3, predicted))
    check(metric.result(), truth, predicted)
    assert np.isnan(metric.result()["iou_ghost"])
    predicted[0, 0, :] = 3
    truth[0, 0, :] = 1
    metric.reset_state()
    metric.update_state(truth, predicted)
    check(metric.result(), truth, predicted)
    assert metric.result()["iou_ghost"] == 0


def test_predicted_labels_at_ignored_pixels_may_be_anything():
    truth, predicted = random_maps(0)
    for value in (-1, 255):
        metric = SegmentationMetrics(4, NAMES)
        metric.update_state(truth, np.where(truth == 255, value, predicted))
        check(metric.result(), truth, predicted)


def test_counts_above_the_float32_limit_are_exact():
    metric = SegmentationMetrics(2)
    metric.confusion.assign([[2**24, 2**24], [2**24, 2**40]])
    metric.update_state(np.array([[[0, 1]]]), np.array([[[0, 0]]]))
    np.testing.assert_array_equal(
        metric.confusion, [[2**24 + 1, 2**24], [2**24 + 1, 2**40]], strict=False
    )
    assert np.float32(2**24) + np.float32(1) == 2**24  # what a float32 matrix would hold


def test_sample_weight_zero_leaves_out():
    truth, predicted = random_maps(2)
    for shape in ((2,), (2, 9, 7), (2, 9, 7, 1)):
        weight = np.zeros(shape)
        weight[0] = 1
        metric = SegmentationMetrics(4, NAMES)
        metric.update_state(truth, predicted, weight)
        check(metric.result(), truth[:1], predicted[:1])


def test_labels_out_of_range_are_not_silent():
    truth, predicted = random_maps(3)
    truth[0, 0, 0] = 4
    metric = SegmentationMetrics(4, NAMES)
    message = r"(?s)labels must be in 0\.\.3 or the ignored label 255.*4"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        metric.update_state(truth, predicted)
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=r"predicted labels must be in 0\.\.3;"
    ):
        metric.update_state(predicted, truth)
    jitted = tf.function(metric.update_state, jit_compile=True, autograph=False)
    for given in ((truth, predicted), (predicted, truth)):
        metric.reset_state()
        jitted(*given)
        assert np.isnan([metric.result()[key] for key in TOTALS]).all()


def test_shapes_and_arguments_are_checked():
    truth, predicted = random_maps(4)
    metric = SegmentationMetrics(4, NAMES)
    for call, arguments, message in (
        (metric.update_state, (truth, as_logits(predicted, 5)), "4 logits"),
        (metric.update_state, (truth[:, 1:], as_logits(predicted, 4)), "y_true"),
        (SegmentationMetrics, (1,), "at least 2"),
        (SegmentationMetrics, (4, NAMES[:3]), "4 different names"),
        (SegmentationMetrics, (2, ["a b", "a  b"]), "different names"),
        (scores, (np.zeros((2, 3)),), "square"),
    ):
        with pytest.raises(ValueError, match=message):
            call(*arguments)


def test_serialisation():
    metric = SegmentationMetrics(4, tuple(NAMES), ignore_label=0, per_class=False, name="m")
    again = keras.metrics.deserialize(keras.metrics.serialize(metric))
    assert again.get_config() == metric.get_config()
    assert list(again.result()) == [f"m_{key}" for key in TOTALS]


def test_scores_is_json_and_equals_the_metric():
    truth, predicted = random_maps(5)
    metric = SegmentationMetrics(4, NAMES)
    metric.update_state(truth, predicted)
    report = scores(metric.confusion.numpy(), NAMES)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    added = {"mean_f1", "f1", "precision", "recall"}
    assert set(report) == {*TOTALS, "per_class", "predicted_share"} | added
    assert report["per_class"]["ghost"] is None
    assert report["predicted_share"]["ghost"] == 0
    assert list(report["per_class"]) == list(report["predicted_share"]) == NAMES
    flat = dict(zip(KEYS, report["per_class"].values(), strict=True))
    flat |= dict(zip(SHARES, report["predicted_share"].values(), strict=True))
    check({**report, **flat, KEYS[3]: np.nan}, truth, predicted)
    empty = scores(np.zeros((2, 2), np.int64))
    assert empty == {
        "mean_iou": None,
        "per_class": {"0": None, "1": None},
        "pixel_accuracy": None,
        "frequency_weighted_iou": None,
        "predicted_share": {"0": None, "1": None},
        "mean_f1": None,
        "f1": {"0": None, "1": None},
        "precision": {"0": None, "1": None},
        "recall": {"0": None, "1": None},
    }


def test_f1_precision_and_recall_are_those_of_sets_of_pixels():
    truth, predicted = random_maps(6)
    predicted[predicted == 1] = 3  # car is never predicted, and ghost only predicted
    names = ["sky", "car", "road", "ghost", "none"]
    cells = truth[truth != 255] * 5 + predicted[truth != 255]
    report = scores(np.bincount(cells, minlength=25).reshape(5, 5), names)
    for number, name in enumerate(names):
        true = set(np.flatnonzero(truth == number))
        found = set(np.flatnonzero((predicted == number) & (truth != 255)))
        hits = len(true & found)
        for key, of in (("precision", len(found)), ("recall", len(true))):
            assert report[key][name] == (pytest.approx(hits / of) if of else None), (key, name)
        total = len(true) + len(found)
        assert report["f1"][name] == (pytest.approx(2 * hits / total) if total else None)
        iou = report["per_class"][name]
        assert report["f1"][name] == (None if iou is None else pytest.approx(2 * iou / (1 + iou)))
    absent = [[key for key in names if report[k][key] is None] for k in ("precision", "recall")]
    assert absent == [["car", "none"], ["ghost", "none"]]
    assert (report["f1"]["car"], report["f1"]["ghost"]) == (0, 0)
    known = [value for value in report["f1"].values() if value is not None]
    assert len(known) == 4
    assert report["mean_f1"] == pytest.approx(np.mean(known))


def identity_model(classes=4, policy="float32"):
    """Logits are the input's channels, so that the prediction is known."""
    layer = keras.layers.Dense(classes, kernel_initializer="identity", dtype=policy)
    return keras.Sequential([keras.Input((None, None, classes)), layer])


@pytest.mark.slow
def test_fit_logs_callbacks_and_round_trip(tmp_path, capsys):
    """Entries per class are in the logs of an epoch, but not in those of a compiled step.

    TensorFlow takes half a minute to optimise a step of 300 results, minutes for 600.
    """
    model, of_steps = identity_model(policy="mixed_bfloat16"), set()
    truth, predicted = random_maps(6, (4, 6, 5))
    val_truth, val_predicted = random_maps(7, (3, 6, 5))
    metrics = [SegmentationMetrics(4, NAMES)]
    model.compile(keras.optimizers.SGD(0.0), CrossEntropy(), metrics=metrics)
    best = tmp_path / "best.keras"
    steps = keras.callbacks.LambdaCallback(on_train_batch_end=lambda _, logs: of_steps.update(logs))
    history = model.fit(
        as_logits(predicted, 4),
        truth,
        batch_size=2,
        epochs=2,
        validation_data=(as_logits(val_predicted, 4), val_truth),
        callbacks=[
            steps,
            keras.callbacks.CSVLogger(tmp_path / "history.csv"),
            keras.callbacks.ModelCheckpoint(best, "val_mean_iou", mode="max", save_best_only=True),
        ],
    ).history
    entries = [*TOTALS, *KEYS, *SHARES]
    assert set(history) == {f"{v}{k}" for v in ("", "val_") for k in ["loss", *entries]}
    assert of_steps == {"loss", *TOTALS}
    for epoch in range(2):
        check({k: v[epoch] for k, v in history.items()}, truth, predicted)
        check({k: history[f"val_{k}"][epoch] for k in entries}, val_truth, val_predicted)
    with open(tmp_path / "history.csv") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[1]["val_mean_iou"]) == pytest.approx(history["val_mean_iou"][1])
    assert "val_mean_iou" in capsys.readouterr().out
    again = keras.models.load_model(best)
    again.run_eagerly = True
    result = again.evaluate(as_logits(predicted, 4), truth, verbose=0, return_dict=True)
    check(result, truth, predicted)


def test_replicas_are_added_up(mirrored):
    truth, predicted = random_maps(8, (4, 6, 5))
    with mirrored.scope():
        metric = SegmentationMetrics(4, NAMES)
    halves = [
        mirrored.experimental_distribute_values_from_function(
            lambda context, maps=maps: tf.constant(maps[context.replica_id_in_sync_group :: 2])
        )
        for maps in (truth, predicted)
    ]
    mirrored.run(metric.update_state, halves)
    check(metric.result(), truth, predicted)


def test_metrics_of_other_names_have_entries_of_their_own(tmp_path):
    model = identity_model()
    truth, predicted = random_maps(9)
    images = as_logits(predicted, 4)
    model.compile(
        keras.optimizers.SGD(0.0),
        CrossEntropy(),
        metrics=[SegmentationMetrics(4, NAMES), SegmentationMetrics(4, NAMES, None, name="all")],
        weighted_metrics=[SegmentationMetrics(4, NAMES, name="weighted")],
        run_eagerly=True,
    )
    truth = np.where(truth == 255, 3, truth)
    truth[0, :3] = 3
    weight = (np.arange(truth.size) % 3).reshape(truth.shape).astype("float32")
    log = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    history = model.fit(images, truth, sample_weight=weight, verbose=0, callbacks=[log]).history
    entries = [*TOTALS, *KEYS, *SHARES]
    prefixed = {f"{prefix}{entry}" for prefix in ("", "all_", "weighted_") for entry in entries}
    assert set(history) == {"loss", *prefixed}
    own = SegmentationMetrics(4, NAMES)
    for prefix, given in (("", None), ("all_", None), ("weighted_", weight)):
        own.reset_state()
        own.update_state(truth, predicted, given)
        for entry in entries:
            expected = own.result()[entry]
            np.testing.assert_allclose(history[f"{prefix}{entry}"][0], expected, rtol=1e-6)
    assert history["mean_iou"] != history["weighted_mean_iou"]
    with open(tmp_path / "log.csv") as file:
        assert set(next(csv.DictReader(file))) >= set(history)
