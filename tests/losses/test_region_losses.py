"""What Dice and Lovász are for, and sums over many pixels."""

from __future__ import annotations

import numpy as np
import pytest
from loss_references import CLASSES, dice_of_class, make_batch, softmax

from keras_deeplab import losses


# The sample weights of the cross-entropy are no sizes.
@pytest.mark.parametrize(
    "kind,weight",
    [
        (losses.CrossEntropy, None),
        *((kind, weight) for kind in (losses.Dice, losses.LovaszSoftmax) for weight in (None, 0.1)),
    ],
)
def test_millions_of_pixels(kind, weight):
    """Sums of float32 one after another would be wrong in the second digit."""
    rng = np.random.default_rng(0)
    labels = (rng.random((2, 1000, 1000)) < 0.002).astype(np.uint8)
    logits = np.stack([np.full(labels.shape, 3.0), rng.normal(size=labels.shape)], -1)
    weights = np.full(labels.shape, weight or 1.0)
    expected = []
    probabilities = softmax(logits.astype(np.float32))
    for c in range(2):
        own, found = (labels == c).ravel(), probabilities[..., c].ravel()
        if kind is losses.CrossEntropy:
            expected.append(-2 * np.log(found[own]).sum() / own.size)
        elif kind is losses.Dice:
            expected.append(dice_of_class(own, found, 1.0, 0))
        else:
            errors = np.abs(own - found)
            order = np.argsort(-errors)
            wrong = np.arange(1, own.size + 1)
            jaccard = wrong / (own.sum() + np.cumsum(~own[order]))
            expected.append((errors[order] * np.diff(jaccard, prepend=0)).sum())
    given = None if weight is None else weights
    value = kind()(labels, logits.astype(np.float32), given)
    np.testing.assert_allclose(value, np.mean(expected), rtol=1e-5)


@pytest.mark.parametrize("kind", [losses.Dice, losses.LovaszSoftmax])
def test_a_perfect_prediction_loses_nothing(kind):
    labels, _, _ = make_batch()
    right = np.eye(CLASSES, dtype=np.float32)[np.where(labels == 255, 3, labels)] * 40
    np.testing.assert_allclose(kind()(labels, right), 0, atol=1e-6)
    all_wrong = np.roll(right, 1, -1)
    np.testing.assert_allclose(kind()(labels, all_wrong), 1, rtol=1e-6)


def test_lovasz_of_certain_predictions_is_one_minus_iou():
    labels, logits, _ = make_batch()
    predicted = logits.argmax(-1)
    valid = labels != 255
    expected = []
    for c in range(3):
        truth, found = (labels == c) & valid, (predicted == c) & valid
        expected.append(1 - (truth & found).sum() / (truth | found).sum())
    certain = np.eye(CLASSES, dtype=np.float32)[predicted] * 100
    np.testing.assert_allclose(
        losses.LovaszSoftmax()(labels, certain), np.mean(expected), rtol=1e-6
    )
