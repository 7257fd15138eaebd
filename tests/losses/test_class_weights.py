from __future__ import annotations

import warnings

import numpy as np
import pytest
import tensorflow as tf

from keras_deeplab import data
from keras_deeplab.losses import class_weights, shares_to_weights


def make_maps(seed=0, count=6):
    """Maps of differing sizes; class 2 is rare and only in some."""
    rng = np.random.default_rng(seed)
    maps = []
    for index in range(count):
        labels = rng.choice(3, p=[0.7, 0.25, 0.05], size=(8 + index, 9))
        labels = np.where(labels == 2, 1, labels) if index % 2 else labels
        labels[rng.random(labels.shape) < 0.2] = 255
        maps.append(labels.astype(np.uint8))
    return maps


def median_reference(maps, num_classes):
    frequencies = []
    for c in range(num_classes):
        holding = [m for m in maps if (m == c).any()]
        pixels = sum((m != 255).sum() for m in holding)
        frequencies.append(sum((m == c).sum() for m in holding) / pixels)
    return np.median(frequencies) / np.array(frequencies)


def inverse_reference(maps, num_classes):
    pixels = np.concatenate([m[m != 255] for m in maps])
    return np.array([1 / (num_classes * (pixels == c).mean()) for c in range(num_classes)])


REFERENCES = {"median": median_reference, "inverse": inverse_reference}


@pytest.mark.parametrize("method", REFERENCES)
def test_equals_numpy_on_what_may_hold_labels(method):
    maps = make_maps()
    expected = REFERENCES[method](maps, 3)
    assert len({*expected.round(3)}) == 3
    dataset = InMemory(maps).dataset("train")
    for given in (
        maps,
        iter(maps),
        [(np.zeros((*m.shape, 3)), m) for m in maps],
        [m[..., None] for m in maps],
        [m[None].astype(np.int32) for m in maps],
        [tf.constant(m) for m in maps],
        dataset,
        dataset.padded_batch(3, padding_values=(np.uint8(0), np.uint8(255))),
        dataset.map(lambda image, labels: labels),
        dataset.map(lambda image, labels: (image, labels, tf.ones(()))),
        dataset.map(lambda image, labels: (image, labels[..., None])),
    ):
        np.testing.assert_allclose(
            class_weights(given, 3, method=method, cap=None), expected, rtol=1e-6
        )
    softened = class_weights(maps, 3, method, power=0.5, cap=None)
    np.testing.assert_allclose(softened, np.sqrt(expected), rtol=1e-6)


def test_a_cap():
    free = class_weights(make_maps(), 3, cap=None)
    assert class_weights(make_maps(), 3, cap=2) == [min(weight, 2) for weight in free]
    assert max(free) > 2
    tiny = [np.array([[0] * 100_000 + [1]])]
    assert class_weights(tiny, 2, method="inverse")[1] == 10


@pytest.mark.parametrize("method", REFERENCES)
def test_absent_classes_get_zero_and_a_warning(method):
    maps = make_maps()
    with pytest.warns(UserWarning, match=r"No pixel of the classes \[3, 4\]: their weights are 0"):
        weights = class_weights(maps, 5, method=method, cap=None)
    assert weights[3:] == [0, 0]
    np.testing.assert_allclose(weights[:3], REFERENCES[method](maps, 3), rtol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        class_weights(maps, 3)


def test_another_ignored_label_and_none():
    maps = make_maps()
    expected = class_weights(maps, 3)
    moved = [np.where(m == 255, -1, m.astype(int)) for m in maps]
    assert class_weights(moved, 3, ignore_label=-1) == expected
    counted = [np.where(m == 255, 2, m) for m in maps]
    assert class_weights(counted, 3, ignore_label=None) != expected


@pytest.mark.parametrize("method", REFERENCES)
def test_the_audit_knows_enough(method):
    """Ignored pixels, and classes that some images lack."""
    maps = make_maps()
    part = data.audit(InMemory(maps)).splits["train"]
    found = shares_to_weights(part.class_share, part.where_present, method, power=0.5)
    np.testing.assert_allclose(found, class_weights(maps, 3, method, power=0.5))
    assert part.ignored_share > 0.1


class InMemory(data.Source):
    info = data.DatasetInfo(("a", "b", "c"))
    splits = ("train",)

    def __init__(self, maps):
        self.maps = maps

    def names(self, split):
        return [str(index) for index in range(len(self.maps))]

    def dataset(self, split, numbers=None):
        return tf.data.Dataset.from_generator(
            lambda: ((np.zeros((*m.shape, 3), np.uint8), m) for m in self.maps),
            output_signature=(
                tf.TensorSpec((None, None, 3), tf.uint8),
                tf.TensorSpec((None, None), tf.uint8),
            ),
        )


MAPS = make_maps()


@pytest.mark.parametrize(
    "labels, arguments, message",
    [
        (MAPS, {"method": "mean"}, "`method` must be one of .*'mean'"),
        (MAPS, {"num_classes": 1}, "`num_classes` must be an integer of at least 2. Received"),
        (MAPS, {"cap": 0}, "`cap` must be a positive number. Received: cap=0"),
        (MAPS, {"power": 0}, "`power` must be a positive number. Received: power=0"),
        (MAPS, {"num_classes": 2}, r"0\.\.1 or the ignored label 255. Received: \[2\]"),
        (MAPS, {"ignore_label": None}, r"in 0\.\.2. Received: \[255\]"),
        ([], {}, "at least one valid pixel"),
        ([np.full((2, 2), 255)], {}, "at least one valid pixel"),
        ([np.zeros(4)], {}, r"Received: an element of shape \(4,\)"),
        (tf.data.Dataset.from_tensors(MAPS[0]).repeat(), {}, "finite"),
    ],
)
def test_arguments_are_checked(labels, arguments, message):
    with pytest.raises(ValueError, match=message):
        class_weights(labels, **{"num_classes": 3, **arguments})
