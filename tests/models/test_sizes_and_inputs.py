from __future__ import annotations

import keras
import numpy as np
import pytest
from calibration import calibrate, image
from networks import tiny, tiny_sequential

import keras_deeplab
from keras_deeplab import DeepLabV3, DeepLabV3Plus, UNet

ALPHA = {"backbone_options": {"depth_multiplier": 0.35}}


@pytest.mark.parametrize("make", [lambda **more: DeepLabV3(2, tiny(), **more), UNet])
def test_preprocessing_is_one_layer_that_can_be_turned_off(make):
    small = {"filters": 4, "depth": 2} if make is UNet else {"aspp_filters": 8}
    on, off = make(preprocessing="tf", **small), make(preprocessing=None, **small)
    calibrate(on, image(32, 32, batch=2))
    off.set_weights(on.get_weights())
    assert {x.name for x in on.layers} - {x.name for x in off.layers} == {"preprocess"}
    pixels = image(33, 33)
    np.testing.assert_allclose(off(pixels / 127.5 - 1), on(pixels), rtol=1e-3, atol=1e-4)
    automatic = make(**small).get_config()["preprocessing"]
    assert automatic == ("tf" if make is UNet else None)


def test_other_channels_and_preprocessing_of_a_backbone_by_name():
    shape = {"input_shape": (None, None, 4)}
    model = DeepLabV3Plus(2, "mobilenet_v2", aspp_filters=8, **shape, **ALPHA)
    assert model.get_config()["preprocessing"] == "tf"
    assert "pad_to_minimum" not in {layer.name for layer in model.layers}
    assert model(image(35, 33, channels=4)).shape == (1, 35, 33, 2)


def test_a_fixed_input_shape_is_kept():
    model = DeepLabV3Plus(2, tiny(), aspp_filters=8, input_shape=(97, 65, 3))
    assert model.input_shape == (None, 97, 65, 3)
    assert model.output_shape == (None, 97, 65, 2)
    assert model.with_output_stride(8).output_shape == (None, 97, 65, 2)


def hungry() -> keras.Model:
    """Valid convolutions: this network needs 23 pixels for its first sample."""
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 7, strides=4, name="a")(inputs)
    x = keras.layers.Conv2D(4, 5, strides=4, activation="tanh", name="b")(x)
    return keras.Model(inputs, x, name="hungry")


def test_small_images_are_padded_to_what_the_backbone_needs():
    model = DeepLabV3(3, hungry(), aspp_rates=(1,), aspp_filters=4)
    assert keras_deeplab.graph.minimum_size(hungry()) == (23, 23)
    assert model.get_layer("pad_to_minimum").minimum == (23, 23)
    calibrate(model, image(40, 40, batch=2))
    small = image(5, 30)
    padded = np.pad(small, ((0, 0), (0, 18), (0, 0), (0, 0)), mode="edge")
    assert model(small).shape == (1, 5, 30, 3)
    np.testing.assert_allclose(model(small), model(padded)[:, :5], rtol=1e-4, atol=1e-5)
    for size in ((1, 1), (22, 23), (23, 22)):
        assert np.isfinite(model(image(*size))).all()


def test_a_fixed_shape_below_the_minimum_is_padded_too():
    model = DeepLabV3(3, hungry(), aspp_rates=(1,), aspp_filters=4, input_shape=(9, None, 3))
    assert model(image(9, 31)).shape == (1, 9, 31, 3)
    assert model(image(9, 2)).shape == (1, 9, 2, 3)


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
