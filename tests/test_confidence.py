from __future__ import annotations

import keras
import numpy as np
import pytest
from calibration import image
from models.networks import calibrated

from keras_deeplab import MultiScale, confidence


def random_probabilities(shape, classes, seed=0):
    values = np.random.default_rng(seed).random((*shape, classes)) ** 4
    return (values / values.sum(-1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("classes", [2, 7])
def test_entropy_and_margin_equal_their_formulas(classes):
    p = random_probabilities((5, 6), classes)
    expected = -(p.astype(np.float64) * np.log(p)).sum(-1) / np.log(classes)
    np.testing.assert_allclose(confidence.entropy(p), expected, atol=1e-6)
    ordered = np.sort(p, axis=-1)
    np.testing.assert_array_equal(confidence.margin(p), ordered[..., -1] - ordered[..., -2])
    assert confidence.entropy(p).dtype == confidence.margin(p).dtype == np.float32


def test_the_ends_of_the_ranges():
    ends = np.array([np.eye(4)[1], np.full(4, 0.25)])
    np.testing.assert_allclose(confidence.entropy(ends), [0, 1], atol=1e-6)
    np.testing.assert_array_equal(confidence.margin(ends), [1, 0])


@pytest.mark.parametrize("wrong", [np.ones((3, 1)), 0.5, [[1.5, -0.5]], [[np.nan, 0.5]]])
def test_other_values_are_refused(wrong):
    for function in (confidence.entropy, confidence.margin):
        with pytest.raises(ValueError, match="`probabilities` must be"):
            function(wrong)


def views_apart(model, pixels):
    """The probabilities of each view of a mean, each from a model of that view alone."""
    found = []
    for scale in model.get_config()["scales"]:
        single = MultiScale(model.model, (scale,))
        both = np.stack([pixels, pixels[:, ::-1]])
        view, mirrored = keras.ops.softmax(single(both))
        found += [view, mirrored[:, ::-1]]
    return np.array(found, np.float64)


@pytest.mark.slow
@pytest.mark.parametrize("name, fusion", [("v3", "max"), ("v3_auxiliary", "mean")])
def test_disagreement_is_the_mutual_information_of_class_and_view(name, fusion, eager):
    model = MultiScale(calibrated(name), (0.5, 1.0), fusion=fusion, flip=True)
    pixels = image(40, 52)[0].astype(np.uint8)
    found = confidence.disagreement(model, pixels)
    p = views_apart(model, pixels)
    mean = p.mean(0)
    information = (p * np.log(p / mean)).sum(-1).mean(0) / np.log(3)
    np.testing.assert_allclose(found, information, atol=2e-5)
    assert found.max() > 20 * 2e-5
    batch = confidence.disagreement(model, np.stack([pixels, pixels]))
    np.testing.assert_allclose(batch[1], found, atol=1e-5)


def test_disagreement_needs_views():
    for model in (calibrated("v3"), MultiScale(calibrated("v3"), (1.0,))):
        with pytest.raises(ValueError, match="`model` must be a MultiScale of at least two views"):
            confidence.disagreement(model, np.zeros((8, 8, 3), np.uint8))


def test_calibration_error_by_hand():
    error = confidence.CalibrationError()
    assert error.result() == {"expected_calibration_error": None, "reliability": []}
    # The upper end of a bin belongs to it: 0.6 and 0.61 are in different bins of 1 / 15.
    error.update(np.array([[0.6, 0.61]]), np.array([[True, False]]))
    error.update(np.array([0.61, 1.0]), np.array([True, True]))
    result = error.result()
    assert result["expected_calibration_error"] == pytest.approx((0.4 + 2 * 0.11) / 4)
    assert result["reliability"] == [
        {"confidence": pytest.approx(0.6), "accuracy": 1, "pixels": 1},
        {"confidence": pytest.approx(0.61), "accuracy": 0.5, "pixels": 2},
        {"confidence": 1, "accuracy": 1, "pixels": 1},
    ]


@pytest.mark.parametrize("value", [np.nan, -1.0, 2.0])
def test_confidence_out_of_its_range_is_an_error(value):
    with pytest.raises(ValueError, match="`confidence` must be in 0..1"):
        confidence.CalibrationError().update(np.array([0.5, value]), np.array([True, False]))
