"""Mean field against sums over all pairs of pixels, and against pydensecrf."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from calibration import image as textured
from crf_references import gaussian, lattice, mean_field, positions
from scipy.ndimage import gaussian_filter

from keras_deeplab.crf import PRESETS, DenseCRF, RefinedModel, dense_crf, open_crf
from keras_deeplab.files import write_json

HEIGHT, WIDTH = 20, 26


def probabilities_of(seed=0, classes=3, sides=(HEIGHT, WIDTH)):
    noise = np.random.default_rng(seed).normal(size=(*sides, classes))
    scores = np.exp(15 * gaussian_filter(noise, (4, 4, 0)))
    return (scores / scores.sum(-1, keepdims=True)).astype(np.float32)


def image_of(seed=0, channels=3):
    """Without equal colours, where the lattice of float32 and that of float64 may differ."""
    noise = np.random.default_rng(seed).random((HEIGHT, WIDTH, channels))
    return 20 + 0.8 * textured(HEIGHT, WIDTH, channels=channels, seed=seed)[0] + noise


def features_of(crf, image):
    xy = positions(*image.shape[:2]) / crf.appearance_sigma_xy
    return np.concatenate([xy, image.reshape(len(xy), -1) / crf.appearance_sigma_rgb], 1)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.0, 40.0])
def test_smoothness_is_exact(sigma):
    crf = DenseCRF(smoothness_sigma=sigma, appearance_weight=0.0)
    probabilities = probabilities_of()
    kernel = 3 * gaussian(positions(HEIGHT, WIDTH) / sigma)
    found = crf(image_of(), probabilities)
    np.testing.assert_allclose(found, mean_field(probabilities, kernel, 10), atol=1e-5)
    assert np.abs(found - probabilities).max() > 0.2


@pytest.mark.parametrize("preset", ["v1", "v2"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_mean_field_is_that_of_the_dense_matrices(preset, channels):
    crf, image, probabilities = PRESETS[preset], image_of(1, channels), probabilities_of(1)
    smoothness = gaussian(positions(HEIGHT, WIDTH) / crf.smoothness_sigma)
    appearance = lattice(features_of(crf, image))
    kernel = crf.smoothness_weight * smoothness + crf.appearance_weight * appearance
    found = dense_crf(image, probabilities, preset)
    np.testing.assert_allclose(found, mean_field(probabilities, kernel, 10), atol=1e-4)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)
    assert np.mean(found.argmax(-1) != probabilities.argmax(-1)) > 0.01


@pytest.mark.parametrize("preset", ["v1", "v2"])
@pytest.mark.parametrize("seed", range(3))
def test_labels_are_close_to_those_of_exact_gaussians(preset, seed):
    crf, image, probabilities = PRESETS[preset], image_of(seed), probabilities_of(seed)
    kernel = crf.smoothness_weight * gaussian(positions(HEIGHT, WIDTH) / crf.smoothness_sigma)
    kernel += crf.appearance_weight * gaussian(features_of(crf, image))
    exact = mean_field(probabilities, kernel, 10).argmax(-1)
    assert np.mean(crf(image, probabilities).argmax(-1) == exact) > 0.94


@pytest.mark.parametrize("preset", ["v1", "v2"])
def test_labels_of_pydensecrf(preset):
    with np.load(Path(__file__).with_name("pydensecrf.npz")) as stored:
        image, probabilities, theirs = (stored[n] for n in ("image", "probabilities", preset))
    found = dense_crf(image, probabilities, preset).argmax(-1)
    assert np.mean(found == theirs) >= 0.995
    assert np.mean(theirs != probabilities.argmax(-1)) > 0.1


def test_a_blurred_edge_moves_to_that_of_the_image():
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, 30:] = (200, 90, 40)
    image = (image + np.random.default_rng(0).integers(0, 4, image.shape)).astype(np.uint8)
    right = 1 / (1 + np.exp(-(np.arange(60) - 36) / 4))  # the edge is 6 pixels to the right
    probabilities = np.broadcast_to(np.stack([1 - right, right], -1), (40, 60, 2))
    truth = np.arange(60) >= 30
    before = np.mean(probabilities.argmax(-1) == truth)
    after = np.mean(dense_crf(image, probabilities).argmax(-1) == truth)
    assert before < 0.91
    assert after == 1


def test_uniform_probabilities_and_a_uniform_image():
    image = np.full((HEIGHT, WIDTH, 3), 100, np.uint8)
    uniform = np.full((HEIGHT, WIDTH, 4), 0.25, np.float32)
    np.testing.assert_allclose(dense_crf(image_of(), uniform), uniform, atol=1e-6)
    constant = np.broadcast_to(np.float32([0.2, 0.5, 0.3]), (HEIGHT, WIDTH, 3))
    assert np.all(dense_crf(image, constant).argmax(-1) == 1)


def test_without_weights_nothing_changes():
    probabilities = probabilities_of()
    same = dense_crf(image_of(), probabilities, smoothness_weight=0, appearance_weight=0)
    np.testing.assert_allclose(same, probabilities, atol=1e-4)
    np.testing.assert_array_equal(same.argmax(-1), probabilities.argmax(-1))


def test_a_batch_and_the_order_of_classes():
    images = np.stack([image_of(seed) for seed in range(2)])
    probabilities = np.stack([probabilities_of(seed, 5) for seed in range(2)])
    batch = dense_crf(images, probabilities)
    single = dense_crf(images[1], probabilities[1])
    np.testing.assert_array_equal(batch[1], single)
    reversed_classes = dense_crf(images[1], probabilities[1, ..., ::-1])
    np.testing.assert_allclose(reversed_classes[..., ::-1], single, atol=1e-5)


@pytest.mark.parametrize("sides", [(1, 1), (1, 9), (7, 1)])
def test_small_images(sides):
    found = dense_crf(np.ones((*sides, 3)), probabilities_of(sides=sides))
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)


def test_bad_arguments():
    image, probabilities = image_of(), probabilities_of()
    nan = np.where(np.arange(3) == 1, np.nan, probabilities)
    for arguments, message in (
        ((image[0], probabilities), "`image` must be numbers (height, width, channels) or"),
        ((image.astype(str), probabilities), "`image` must be numbers"),
        ((image[:0], probabilities[:0]), "`image` must be numbers"),
        ((image * np.nan, probabilities), "`image` must be in 0..255"),
        ((image * 1e6, probabilities), "`image` must be in 0..255"),
        ((image[1:], probabilities), "(19, 26) of the image"),
        ((image, probabilities.argmax(-1)), "`probabilities` must be float"),
        ((image, probabilities[..., :1]), "`probabilities` must be float"),
        ((image, np.log(probabilities)), "in 0..1. Received: probabilities='-"),
        ((image, nan), "`probabilities` must be in 0..1"),
        ((image, probabilities, "v3"), "`preset` must be one of 'v1', 'v2'"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            dense_crf(*arguments)
    for name, value, rule in (
        ("smoothness_weight", -1, "a non-negative number"),
        ("appearance_weight", np.nan, "a non-negative number"),
        ("smoothness_sigma", 0, "a positive number"),
        ("appearance_sigma_rgb", "3", "a positive number"),
        ("steps", 0, "a positive integer"),
        ("steps", 2.5, "a positive integer"),
        ("appearance_weight", 1e308, "in 0..1e+06"),
        ("smoothness_sigma", 1e308, "in 0.01..1e+06"),
        ("appearance_sigma_xy", 1e-308, "in 0.01..1e+06"),
        ("appearance_sigma_rgb", 10**400, "a positive number"),
        ("steps", 10**12, "in 1..1000"),
    ):
        with pytest.raises(ValueError, match=re.escape(f"`{name}` must be {rule}")):
            dense_crf(image, probabilities, **{name: value})


def test_the_ends_of_the_constants_give_probabilities():
    image, probabilities = image_of(), probabilities_of()
    for weight, sigma in itertools.product((0, 1e6), (0.01, 1e6)):
        found = DenseCRF(weight, sigma, weight, sigma, sigma)(image, probabilities)
        np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)


def test_pixels_divided_by_255_are_a_warning():
    with pytest.warns(UserWarning, match="one colour for the CRF"):
        dense_crf(image_of() / np.float32(255), probabilities_of())


def test_constants_of_numpy_are_written_as_json():
    text = json.dumps(DenseCRF(np.float32(2.5), steps=np.int64(3)).to_dict())
    assert DenseCRF(**json.loads(text)) == DenseCRF(2.5, steps=3)


def test_a_refined_model_is_checked():
    for crf in (None, "v1"):
        with pytest.raises(ValueError, match="`crf` must be"):
            RefinedModel(None, crf)
    with pytest.raises(ValueError, match="`model` must be without a CRF"):
        RefinedModel(RefinedModel(None, DenseCRF()), DenseCRF())


def test_presets_and_files(tmp_path):
    path = tmp_path / "crf.json"
    crf = DenseCRF(1, 2.5, 3, 4, 5, 6)
    write_json(path, crf.to_dict())
    assert open_crf(path) == open_crf(str(path)) == crf
    assert open_crf("v1") == DenseCRF(3, 3, 4, 49, 5, 10)
    assert open_crf("v2") == DenseCRF(3, 1, 4, 67, 3, 10)
    with pytest.raises(ValueError, match="`crf` must be v1, v2 or a JSON file"):
        open_crf("v3")
    for content in ({}, {**crf.to_dict(), "more": 1}):
        write_json(path, content)
        with pytest.raises(ValueError, match="It must hold the constants smoothness_weight, "):
            open_crf(path)
    write_json(path, {**crf.to_dict(), "steps": "many"})
    with pytest.raises(ValueError, match="`steps` must be a positive integer"):
        open_crf(path)
