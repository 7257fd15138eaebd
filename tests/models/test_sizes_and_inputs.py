from __future__ import annotations

import keras
import numpy as np
import pytest
from calibration import calibrate, image
from networks import tiny

import keras_deeplab
from keras_deeplab import DeepLabV3, DeepLabV3Plus

SIZES = [(1, 1), (2, 3), (97, 129), (64, 33)]


@pytest.fixture(scope="module", params=[DeepLabV3, DeepLabV3Plus])
def model(request) -> keras.Model:
    return calibrate(request.param(5, "mobilenet_v2", aspp_filters=16), image(64, 64, batch=2))


def test_logits_have_the_size_of_the_image(model):
    for size in [*SIZES, (513, 321)]:
        logits = model(image(*size))
        assert logits.shape == (1, *size, 5)
        assert logits.dtype == "float32"
        assert np.isfinite(logits).all()
        assert np.std(logits) > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("cls", [DeepLabV3, DeepLabV3Plus])
def test_resnet_at_full_size(cls):
    model = cls()
    for size in [*SIZES, (513, 321)]:
        logits = model.predict(image(*size), verbose=0)
        assert logits.shape == (1, *size, 21)
        assert np.isfinite(logits).all()


def test_uint8_and_float_pixels_are_the_same(model):
    pixels = image(33, 41).round()
    expected = model.predict(pixels, verbose=0)
    np.testing.assert_allclose(
        model.predict(pixels.astype("uint8"), verbose=0), expected, rtol=1e-4, atol=1e-5
    )
    eager = model(pixels.astype("uint8"))
    np.testing.assert_allclose(eager, expected, rtol=1e-3, atol=1e-3)


def test_preprocessing_is_one_layer_that_can_be_turned_off():
    on = DeepLabV3(2, "mobilenet_v2", aspp_filters=8)
    off = DeepLabV3(2, "mobilenet_v2", aspp_filters=8, preprocessing=None)
    off.set_weights(on.get_weights())
    assert {x.name for x in on.layers} - {x.name for x in off.layers} == {"preprocess"}
    pixels = image(33, 33)
    np.testing.assert_allclose(off(pixels / 127.5 - 1), on(pixels), rtol=1e-3, atol=1e-4)
    assert on.get_config()["preprocessing"] == "tf"
    assert DeepLabV3(2, tiny()).get_config()["preprocessing"] is None
    assert DeepLabV3(2, tiny(), preprocessing="torch").get_layer("preprocess")


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("backbone", ["mobilenet_v2", tiny])
def test_other_channels(channels, backbone):
    network = backbone if isinstance(backbone, str) else backbone(channels)
    model = DeepLabV3Plus(2, network, aspp_filters=8, input_shape=(None, None, channels))
    assert model(image(35, 33, channels=channels)).shape == (1, 35, 33, 2)


def test_a_fixed_input_shape_is_kept():
    model = DeepLabV3Plus(2, "mobilenet_v2", aspp_filters=8, input_shape=(97, 65, 3))
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


def test_no_padding_layer_where_none_is_needed(model):
    assert "pad_to_minimum" not in {layer.name for layer in model.layers}


def test_dilated_poolings_never_meet_padding_alone():
    """VGG16's last pooling has taps 2 samples apart: a map of 1 at stride 8 falls between them."""
    arguments = {"output_stride": 8, "aspp_filters": 8, "head_filters": None}
    model = DeepLabV3(2, "vgg16", **arguments)
    assert model.get_layer("pad_to_minimum").minimum == (9, 9)
    calibrate(model, image(64, 64, batch=2))
    for size in ((1, 1), (8, 97), (9, 97), (33, 33)):
        logits = np.asarray(model(image(*size)))
        assert logits.shape == (1, *size, 2)
        assert np.abs(logits).max() < 1e3, size  # the lowest float32 is finite too
        assert np.std(logits) > 1e-2
    fixed = DeepLabV3(2, "vgg16", input_shape=(8, None, 3), **arguments)
    fixed.set_weights(model.get_weights())
    x = image(8, 97)
    np.testing.assert_allclose(fixed(x), model(x), rtol=1e-4, atol=1e-4)
