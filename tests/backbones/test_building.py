from __future__ import annotations

import keras
import numpy as np
import pytest

from keras_deeplab import backbones


def test_by_name_and_with_channels():
    network = backbones.build("mobilenet_v2", (None, None, 5), multi_grid=None, stride_on=None)
    assert network.name == "mobilenet_v2"
    assert network.input_shape == (None, None, None, 5)
    assert network.output_shape == (None, None, None, 320)


def test_options_and_their_defaults_are_those_of_the_functions():
    assert backbones.completed_options("mobilenet_v2", {"padding": "same", "epsilon": None}) == {
        "depth_multiplier": 1.0,
        "divisible_by": None,
        "classifier_conv": False,
        "padding": "same",
        "epsilon": 1e-3,
    }
    assert backbones.completed_options("resnet101", {})["stride_on"] == "3x3"
    for name in backbones.NAMES:
        assert backbones.find(name).preprocessing in backbones.PREPROCESSING


def test_options_reach_the_resnet():
    network = backbones.build("resnet50", (65, 97, 3), multi_grid=(1, 2, 4), stride_on="1x1")
    assert network.output_shape == (None, 3, 4, 2048)
    assert network.get_layer("stage4_unit3_2_conv").dilation_rate == (4, 4)
    assert network.get_layer("stage4_unit1_1_conv").strides == (2, 2)


@pytest.mark.parametrize(
    "name, options, words",
    [
        ("resnet18", {}, "`backbone` must be one of .*resnet50.* Received: backbone='resnet18'"),
        ("mobilenet_v2", {"multi_grid": (1, 2, 4)}, r"`multi_grid` .*'mobilenet_v2'.*\(1, 2, 4\)"),
        ("mobilenet_v2", {"stride_on": "1x1"}, "`stride_on` .*'mobilenet_v2'.*'1x1'"),
    ],
)
def test_errors_name_argument_and_value(name, options, words):
    with pytest.raises(ValueError, match=words):
        backbones.build(name, (None, None, 3), **options)


@pytest.mark.parametrize("mode", ["tf", "torch", "caffe"])
def test_preprocessing_is_that_of_keras_applications(mode):
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 5, 7, 3)).astype("float32")
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, backbones.preprocess(inputs, mode))
    expected = keras.applications.imagenet_utils.preprocess_input(pixels.copy(), mode=mode)
    np.testing.assert_allclose(model(pixels), expected, rtol=1e-4, atol=1e-4)
    reversing = ["preprocess_channels"] if mode == "caffe" else []
    assert [layer.name for layer in model.layers[1:]] == [*reversing, "preprocess"]


def test_the_mean_of_vgg_without_the_change_to_bgr():
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 5, 7, 3)).astype("float32")
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, backbones.preprocess(inputs, "mean"))
    bgr = keras.applications.imagenet_utils.preprocess_input(pixels.copy(), mode="caffe")
    np.testing.assert_allclose(model(pixels), bgr[..., ::-1], rtol=1e-4, atol=1e-4)


def test_the_mean_that_deeplab_was_trained_with():
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, backbones.preprocess(inputs, "caffe_deeplab"))
    pixels = np.array([[[[122.675, 116.669, 104.008], [200.0, 100.0, 50.0]]]], "float32")
    expected = [[0, 0, 0], [50 - 104.008, 100 - 116.669, 200 - 122.675]]
    np.testing.assert_allclose(model(pixels)[0, 0], expected, atol=1e-4)


def test_preprocessing_of_other_channels_is_minus_one_to_one():
    inputs = keras.Input((None, None, 1))
    model = keras.Model(inputs, backbones.preprocess(inputs, "torch"))
    pixels = np.array([0, 127.5, 255], "float32").reshape(1, 3, 1, 1)
    np.testing.assert_allclose(np.ravel(model(pixels)), [-1, 0, 1], atol=1e-6)


def test_preprocessing_refuses_other_modes():
    with pytest.raises(ValueError, match="`preprocessing` .* Received: preprocessing='bgr'"):
        backbones.preprocess(keras.Input((None, None, 3)), "bgr")
