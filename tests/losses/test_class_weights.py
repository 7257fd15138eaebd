from __future__ import annotations

import warnings

import numpy as np
import pytest
import tensorflow as tf

from keras_deeplab import data
from keras_deeplab.losses import class_weights, shares_to_weights

# Of six sizes, with ignored pixels and without some of the six classes.
SOURCE = data.Shapes(train=6, val=0)
MAPS = [labels for _, labels in SOURCE.dataset("train").as_numpy_iterator()]


def median_reference(classes):
    frequencies = []
    for c in range(classes):
        holding = [m for m in MAPS if (m == c).any()]
        pixels = sum((m != 255).sum() for m in holding)
        frequencies.append(sum((m == c).sum() for m in holding) / pixels)
    return np.median(frequencies) / np.array(frequencies)


def inverse_reference(classes):
    pixels = np.concatenate([m[m != 255] for m in MAPS])
    return np.array([1 / (classes * (pixels == c).mean()) for c in range(classes)])


REFERENCES = {"median": median_reference(6), "inverse": inverse_reference(6)}
every_method = pytest.mark.parametrize("method", REFERENCES)


@every_method
def test_equals_numpy_on_what_may_hold_labels(method):
    dataset = SOURCE.dataset("train")
    void = np.uint8(0), np.uint8(255)
    for given in (
        MAPS,
        iter(MAPS),
        list(dataset.as_numpy_iterator()),
        [m[..., None] for m in MAPS],
        [m[None].astype(np.int32) for m in MAPS],
        [tf.constant(m) for m in MAPS],
        dataset,
        dataset.padded_batch(3, padding_values=void),
        dataset.map(lambda image, labels: labels),
        dataset.map(lambda image, labels: (image, labels, tf.ones(()))),
        dataset.map(lambda image, labels: (image, labels[..., None])),
    ):
        found = class_weights(given, 6, method, cap=None)
        np.testing.assert_allclose(found, REFERENCES[method], rtol=1e-6)
    found = class_weights(MAPS, 6, method, power=0.5, cap=None)
    np.testing.assert_allclose(found, np.sqrt(REFERENCES[method]), rtol=1e-6)
    part = data.audit(SOURCE).splits["train"]
    found = shares_to_weights(part.class_share, part.where_present, method, cap=None)
    np.testing.assert_allclose(found, REFERENCES[method], rtol=1e-6)


def test_a_cap():
    free = class_weights(MAPS, 6, cap=None)
    assert class_weights(MAPS, 6, cap=2) == [min(weight, 2) for weight in free]
    assert max(free) > 2
    tiny = [np.array([[0] * 100_000 + [1]])]
    assert class_weights(tiny, 2, method="inverse")[1] == 10


@every_method
def test_absent_classes_get_zero_and_a_warning(method):
    with pytest.warns(UserWarning, match=r"No pixel of the classes \[6, 7\]: their weights are 0"):
        weights = class_weights(MAPS, 8, method, cap=None)
    assert weights[6:] == [0, 0]
    np.testing.assert_allclose(weights[:6], REFERENCES[method], rtol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        class_weights(MAPS, 6)


def test_another_ignored_label_and_none():
    expected = class_weights(MAPS, 6)
    moved = [np.where(m == 255, -1, m.astype(int)) for m in MAPS]
    assert class_weights(moved, 6, ignore_label=-1) == expected
    counted = [np.where(m == 255, 2, m) for m in MAPS]
    assert class_weights(counted, 6, ignore_label=None) != expected


@pytest.mark.parametrize(
    "labels, arguments, message",
    [
        (MAPS, {"method": "mean"}, "`method` must be one of .*'mean'"),
        (MAPS, {"num_classes": 1}, "`num_classes` must be an integer of at least 2. Received"),
        (MAPS, {"cap": 0}, "`cap` must be a positive number. Received: cap=0"),
        (MAPS, {"power": 0}, "`power` must be a positive number. Received: power=0"),
        (MAPS, {"num_classes": 5}, r"0\.\.4 or the ignored label 255. Received: \[5\]"),
        (MAPS, {"ignore_label": None}, r"in 0\.\.5. Received: \[255\]"),
        ([], {}, "at least one valid pixel"),
        ([np.full((2, 2), 255)], {}, "at least one valid pixel"),
        ([np.zeros(4)], {}, r"Received: an element of shape \(4,\)"),
        (tf.data.Dataset.from_tensors(MAPS[0]).repeat(), {}, "finite"),
    ],
)
def test_arguments_are_checked(labels, arguments, message):
    with pytest.raises(ValueError, match=message):
        class_weights(labels, **{"num_classes": 6, **arguments})
