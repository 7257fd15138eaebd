"""Preprocessing, minimum sizes, and the stage of a decoder that keeps what is a few pixels wide."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from calibration import calibrate, image
from networks import calibrated, small, tiny_sequential

import keras_deeplab
from keras_deeplab import DeepLabV3
from keras_deeplab.graph import geometry


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v3", "unet"])
def test_preprocessing_is_one_layer_that_can_be_turned_off(name):
    on, off = (small(name, preprocessing=value) for value in ("tf", None))
    calibrate(on, image(32, 32, batch=2))
    off.set_weights(on.get_weights())
    assert {x.name for x in on.layers} - {x.name for x in off.layers} == {"preprocess"}
    pixels = image(33, 33)
    np.testing.assert_allclose(off(pixels / 127.5 - 1), on(pixels), rtol=1e-3, atol=1e-4)
    assert calibrated(name).get_config()["preprocessing"] == ("tf" if name == "unet" else None)


def hungry() -> keras.Model:
    """Valid convolutions: this network needs 23 pixels for its first sample."""
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 7, strides=4, name="a")(inputs)
    x = keras.layers.Conv2D(4, 5, strides=4, activation="tanh", name="b")(x)
    return keras.Model(inputs, x, name="hungry")


def test_small_images_are_padded_to_what_the_backbone_needs():
    options = {"aspp_rates": (1,), "aspp_filters": 4}
    model = DeepLabV3(3, hungry(), **options)
    assert keras_deeplab.graph.minimum_size(hungry()) == (23, 23)
    assert model.get_layer("pad_to_minimum").minimum == (23, 23)
    calibrate(model, image(40, 40, batch=2))
    x = image(5, 30)
    padded = np.pad(x, ((0, 0), (0, 18), (0, 0), (0, 0)), mode="edge")
    assert model(x).shape == (1, 5, 30, 3)
    np.testing.assert_allclose(model(x), model(padded)[:, :5], rtol=1e-4, atol=1e-5)
    for size in ((1, 1), (22, 23), (23, 22)):
        assert np.isfinite(model(image(*size))).all()
    fixed = DeepLabV3(3, hungry(), **options, input_shape=(9, None, 3))
    for size in ((9, 31), (9, 2)):
        assert fixed(image(*size)).shape == (1, *size, 3)


def test_dilated_poolings_never_meet_padding_alone():
    """The last pooling has taps 2 samples apart: a map of 1 at stride 4 falls between them."""
    arguments = {"output_stride": 4, "aspp_rates": (1,), "aspp_filters": 8, "head_filters": None}
    model = DeepLabV3(2, tiny_sequential(), **arguments)
    least = model.get_layer("pad_to_minimum").minimum
    calibrate(model, image(64, 64, batch=2))
    for size in ((1, 1), (least[0] - 1, 97), (least[0], 97), (33, 33)):
        logits = np.asarray(model(image(*size)))
        assert logits.shape == (1, *size, 2)
        assert np.abs(logits).max() < 1e3, size  # the lowest float32 is finite too
        assert np.std(logits) > 1e-2
    fixed = DeepLabV3(2, tiny_sequential(), input_shape=(8, None, 3), **arguments)
    fixed.set_weights(model.get_weights())
    x = image(8, 97)
    np.testing.assert_allclose(fixed(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_detail_stage_adds_exactly_its_own_parameters_and_works_at_its_stride():
    model, one = calibrated("v3_detail"), small("v3_plus", separable=True)
    assert model.get_config()["detail_layer"] == "stem"

    def separable(inputs: int, outputs: int) -> int:
        """A depthwise and a pointwise convolution with a batch norm each."""
        return inputs * (9 + 4) + inputs * outputs + 4 * outputs

    skip = 8 * 24 + 4 * 24
    added = skip + separable(8 + 24, 6) + separable(6, 6)
    predictor = (6 * 3 + 3) - (8 * 3 + 3)
    assert model.count_params() - one.count_params() == added + predictor
    assert geometry(one)["logits"].stride == (4, 4)
    assert geometry(model)["logits"].stride == (2, 2)


def test_a_detail_stage_has_what_a_stride_of_four_cannot():
    """Only the finer skip distinguishes two images whose features at stride 4 are the same."""
    model, random = calibrated("v3_detail"), np.random.default_rng(1)
    coarse, low_level = random.normal(size=(1, 4, 4, 12)), random.normal(size=(1, 16, 16, 8))
    assert [x.shape[-1] for x in model.backbone.outputs] == [12, 8, 8]

    def logits(detail: np.ndarray) -> np.ndarray:
        x = model.get_layer("aspp")(coarse)
        for name, skip in (("decoder", low_level), ("detail", detail)):
            x = model.get_layer(f"{name}_upsample")(x, skip)
            x = model.get_layer(f"{name}_concat")([x, model.get_layer(f"{name}_low_level")(skip)])
            for index in range(2):
                x = model.get_layer(f"{name}_{index}")(x)
        return model.get_layer("logits")(x).numpy()

    first, second = (logits(random.normal(size=(1, 32, 32, 8))) for _ in range(2))
    assert np.std(first) > 1e-2
    difference = np.abs(first - second)
    assert difference.mean() > 1e-2
    # At a stride of 4 neighbours within a cell would change alike.
    assert np.abs(difference[:, ::2] - difference[:, 1::2]).mean() > 1e-3
