from __future__ import annotations

import json

import numpy as np
import pytest
from inference.test_predicting import channel_model
from test_evaluation import SIZES, dataset_of, pairs

from keras_deeplab.boundary import BoundaryScores
from keras_deeplab.evaluation import evaluate
from keras_deeplab.metrics import scores


def blobs(seed, shape=(17, 21), classes=3, void=0.02):
    """A map of connected regions, with some ignored pixels."""
    rng = np.random.default_rng(seed)
    seeds = rng.uniform(0, 1, (7, 2)) * shape
    grid = np.stack(np.mgrid[: shape[0], : shape[1]], -1)[:, :, None]
    labels = rng.integers(0, classes, 7)[((grid - seeds) ** 2).sum(-1).argmin(-1)]
    labels[rng.random(shape) < void] = 255
    return labels


def by_distances(labels, distance):
    """Pixels with a pixel of another label within the distance, pair by pair."""
    near = np.zeros(labels.shape, bool)
    for p in np.ndindex(*labels.shape):
        for q in np.ndindex(*labels.shape):
            apart = max(abs(p[0] - q[0]), abs(p[1] - q[1]))
            near[p] |= apart <= distance and labels[p] != labels[q]
    return near


def eroded_border(mask, distance):
    """A mask minus its erosion, one pixel at a time, with nothing outside the image."""
    left = np.pad(mask, 1)
    for _ in range(distance):
        shifted = [
            np.roll(left, (row, column), (0, 1)) for row in (-1, 0, 1) for column in (-1, 0, 1)
        ]
        left = np.all(shifted, 0)
        left[[0, -1]] = left[:, [0, -1]] = False
    return mask & ~left[1:-1, 1:-1]


def boundary_reference(truths, predictions, ratio, classes=3):
    """Boundary IoU from masks of each class."""
    both, either = np.zeros(classes), np.zeros(classes)
    for truth, predicted in zip(truths, predictions, strict=True):
        valid = truth != 255
        distance = max(1, round(ratio * np.sqrt(truth.shape[0] ** 2 + truth.shape[1] ** 2)))
        for c in range(classes):
            borders = [eroded_border(m & valid, distance) for m in (truth == c, predicted == c)]
            both[c] += (borders[0] & borders[1]).sum()
            either[c] += (borders[0] | borders[1]).sum()
    return [b / e if e else None for b, e in zip(both, either, strict=True)]


def trimap_reference(truths, predictions, width, classes=3):
    confusion = np.zeros((classes, classes), int)
    for truth, predicted in zip(truths, predictions, strict=True):
        band = by_distances(truth, width) & (truth != 255)
        np.add.at(confusion, (truth[band], predicted[band]), 1)
    return scores(confusion)["mean_iou"]


def check(result, truths, predictions, ratio, names):
    expected = boundary_reference(truths, predictions, ratio, len(names))
    assert result["boundary_per_class"] == pytest.approx(dict(zip(names, expected, strict=True)))
    present = [value for value in expected if value is not None]
    assert result["boundary_mean_iou"] == pytest.approx(np.mean(present))
    for width, value in result["trimap_mean_iou"].items():
        assert value == pytest.approx(trimap_reference(truths, predictions, int(width), len(names)))


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [0.02, 0.11])
def test_scores_equal_the_references(ratio):
    shapes = [(17, 21), (9, 30), (1, 9), (1, 1)]
    truths = [blobs(seed, shape) for seed, shape in enumerate(shapes)]
    predictions = [np.roll(np.where(truth == 255, 0, truth), (1, 2), (0, 1)) for truth in truths]
    names = ["a", "b", "c", "ghost"]  # the last is in neither
    counts = BoundaryScores(4, names, widths=[1, 2, 30], dilation_ratio=ratio)
    for truth, predicted in zip(truths, predictions, strict=True):
        counts.update(truth.astype(np.uint8), predicted.astype(np.int32))
    result = counts.result()
    check(result, truths, predictions, ratio, names)
    assert result["boundary_per_class"]["ghost"] is None
    assert 0.1 < result["boundary_mean_iou"] < 0.9
    assert list(result["trimap_mean_iou"]) == ["1", "2", "30"]
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_the_ignored_moves_no_border():
    truth = blobs(5, void=0.2)
    perfect = np.where(truth == 255, 1, truth)
    counts = BoundaryScores(3, widths=[1, 4])
    counts.update(truth, perfect)
    result = counts.result()
    assert result["boundary_mean_iou"] == 1
    assert set(result["trimap_mean_iou"].values()) == {1}
    another = BoundaryScores(3, widths=[1, 4], ignore_label=0)
    truth = blobs(6, void=0)
    another.update(truth, np.where(truth == 0, 2, truth))
    assert another.result()["boundary_per_class"] == {"0": None, "1": 1, "2": 1}


def test_nothing_counted_is_none():
    counts = BoundaryScores(2, widths=[1])
    counts.update(np.zeros((4, 4), int), np.zeros((4, 4), int))
    assert counts.result() == {
        "boundary_mean_iou": 1,
        "boundary_per_class": {"0": 1, "1": None},
        "trimap_mean_iou": {"1": None},
    }
    assert BoundaryScores(2).result()["boundary_mean_iou"] is None


def test_arguments_are_checked():
    square, update = np.zeros((2, 2), int), BoundaryScores(2).update
    for call, arguments, message in (
        (BoundaryScores, {"num_classes": 1}, "`num_classes` must be .* num_classes=1"),
        (BoundaryScores, {"class_names": ["a"]}, "2 different names"),
        (BoundaryScores, {"widths": [0]}, r"`widths` must be .* widths=\[0\]"),
        (BoundaryScores, {"dilation_ratio": 2}, "`dilation_ratio` .* dilation_ratio=2"),
        (update, {"predicted": np.zeros((2, 3))}, r"shapes \(2, 2\) and \(2, 3\)"),
        (update, {"truth": square + 2}, r"truth must be in 0\.\.1 or .* 255. Received: \[2"),
        (update, {"predicted": square - 1}, r"predicted must be in 0\.\.1.*Received: \[-1"),
    ):
        given = (
            {"num_classes": 2} if call is BoundaryScores else {"truth": square, "predicted": square}
        )
        with pytest.raises(ValueError, match=message):
            call(**{**given, **arguments})


@pytest.mark.slow
def test_evaluate_adds_them_when_asked():
    model, items = channel_model(), list(pairs([*SIZES, (12, 15)]))
    plain = evaluate(model, dataset_of(items), verbose=0)
    report = evaluate(model, dataset_of(items), ["r", "g", "b"], verbose=0, boundary=True)
    added = {"boundary_mean_iou", "boundary_per_class", "trimap_mean_iou"}
    assert set(report) - set(plain) == added
    assert report["mean_iou"] == plain["mean_iou"]
    predictions = [pixels.argmax(-1) for pixels, _ in items]
    check(report, [labels for _, labels in items], predictions, 0.02, ["r", "g", "b"])
    assert list(report["trimap_mean_iou"]) == ["1", "2", "4", "8", "16", "32"]
