"""The search finds constants under which a CRF helps, and reports all that it tried."""

from __future__ import annotations

import re

import numpy as np
import pytest

from keras_deeplab.crf import DenseCRF, search
from keras_deeplab.metrics import confusion_matrix, scores

GRID = {"appearance_sigma_rgb": (4.0, 16.0, 64.0), "appearance_weight": (4.0,)}
START = DenseCRF(0, 1, 1, 20, 3)


def samples_of(count=2):
    """Two classes of colours 60 apart with noise of 8; the probabilities are noisy."""
    for seed in range(count):
        random = np.random.default_rng(seed)
        labels = np.zeros((30, 36), np.uint8)
        labels[:, 10 + 6 * seed :] = 1
        image = 80 + 60 * labels[..., None] + random.normal(0, 8, (30, 36, 3))
        right = np.clip(0.3 + 0.4 * labels + random.normal(0, 0.2, labels.shape), 0, 1)
        labels[:3] = 255
        yield image, np.stack([1 - right, right], -1), labels


def mean_iou(samples, refine):
    counts = 0
    for image, probabilities, labels in samples:
        known = labels != 255
        predicted = refine(image, probabilities).argmax(-1)
        counts += confusion_matrix(labels[known], predicted[known], 2)
    return scores(counts)["mean_iou"]


@pytest.mark.slow
def test_coarse_to_fine():
    samples = list(samples_of())
    report = search(samples, GRID, rounds=2, start=START, verbose=0)
    assert report.unrefined_mean_iou == mean_iou(samples, lambda _, probabilities: probabilities)
    assert report.mean_iou == {crf: mean_iou(samples, crf) for crf in report.mean_iou}
    assert report.mean_iou[report.best] == max(report.mean_iou.values())
    assert report.mean_iou[report.best] > report.unrefined_mean_iou + 0.1
    assert len(set(report.mean_iou.values())) > 1
    tried = [crf.appearance_sigma_rgb for crf in report.mean_iou]
    first = max(list(report.mean_iou)[:3], key=report.mean_iou.get).appearance_sigma_rgb
    assert tried == pytest.approx([4, 16, 64, first / 2, first * 2])
    assert {crf.appearance_sigma_xy for crf in report.mean_iou} == {20}


def test_each_round_halves_the_steps_around_the_best():
    """A value that is given twice makes no smaller step."""
    grid = {"appearance_sigma_rgb": (4.0, 16.0, 16.0), "appearance_weight": (2.0, 4.0)}
    report = search(list(samples_of(1)), grid, rounds=3, start=START, verbose=0)
    tried = [(crf.appearance_sigma_rgb, crf.appearance_weight) for crf in report.mean_iou]
    found, expected = list(report.mean_iou.values()), [(4, 2), (4, 4), (16, 2), (16, 4)]
    for shift in (0.5, 0.25):
        sigma, weight = tried[np.argmax(found[: len(expected)])]
        expected += [(sigma / 4**shift, weight), (sigma * 4**shift, weight)]
        expected += [(sigma, weight / 2**shift), (sigma, weight * 2**shift)]
    np.testing.assert_allclose(tried, expected)
    assert len(set(found)) > 3


def test_other_ignored_labels():
    samples = [(image, p, np.where(labels == 255, 9, labels)) for image, p, labels in samples_of()]
    nine = search(samples, GRID, 1, START, ignore_label=9, verbose=0)
    assert nine == search(list(samples_of()), GRID, 1, START, verbose=0)


def test_bad_arguments():
    samples = list(samples_of(1))
    image, probabilities, labels = samples[0]
    for arguments, message in (
        (([],), "`samples` must be non-empty"),
        (([(image, probabilities, labels[1:])],), "`labels` must be integers (height, width)"),
        (([(image, probabilities, labels / 1.0)],), "`labels` must be integers (height, width)"),
        (([(image, probabilities, labels + 1)],), "labels must be in 0..1 or the ignored"),
        (([(image, probabilities, labels * 0 + 255)],), "`samples` must be with pixels that"),
        (([(image[1:], probabilities, labels)],), "`probabilities` must be float"),
        ((samples, {"steps": (1, 2)}), "`grid` must be one of 'smoothness_weight'"),
        ((samples, {"appearance_weight": ()}), "positive numbers of appearance_weight"),
        ((samples, {"appearance_weight": (1, -1)}), "positive numbers of appearance_weight"),
        ((samples, GRID, 0), "`rounds` must be a positive integer"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            search(*arguments, verbose=0)
