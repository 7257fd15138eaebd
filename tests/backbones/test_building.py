from __future__ import annotations

from functools import partial

import keras
import numpy as np
import pytest

from keras_deeplab import backbones


@pytest.mark.slow
def test_by_name_and_with_channels():
    network = backbones.build("mobilenet_v2", (None, None, 5), multi_grid=None, padding=None)
    assert network.name == "mobilenet_v2"
    assert network.input_shape == (None, None, None, 5)
    assert network.output_shape == (None, None, None, 320)


def test_options_and_their_defaults_are_those_of_the_functions():
    given = {"padding": "same", "epsilon": None}
    assert backbones.get("mobilenet_v2").completed("mobilenet_v2", given) == {
        "depth_multiplier": 1.0,
        "divisible_by": None,
        "classifier_conv": False,
        "padding": "same",
        "epsilon": 1e-3,
    }
    for name in backbones.NAMES:
        assert backbones.get(name).preprocessing in backbones.PREPROCESSING


DEPTH = "`depth` must be one of .* Received: depth="


@pytest.mark.parametrize(
    "build, arguments, words",
    [
        ("resnet18", {}, "`backbone` must be one of .*resnet50.* Received: backbone='resnet18'"),
        ("mobilenet_v2", {"multi_grid": (1, 2, 4)}, r"`multi_grid` .*'mobilenet_v2'.*\(1, 2, 4\)"),
        (backbones.resnet, {"depth": 18}, f"{DEPTH}18"),
        (backbones.resnet_beta, {"depth": 152}, f"{DEPTH}152"),
        (backbones.xception, {"depth": 50}, f"{DEPTH}50"),
        (backbones.mobilenet_v3, {"size": "medium"}, "`size` .* Received: size='medium'"),
        (backbones.vgg16, {"pool_size": 4}, "`pool_size` must be one of .* pool_size=4"),
        ("resnet50", {"stride_on": "2x2"}, "`stride_on` .* Received: stride_on='2x2'"),
        ("resnet50", {"multi_grid": (1, 2)}, r"`multi_grid` .* 3 .*multi_grid=\(1, 2\)"),
        ("resnet50", {"multi_grid": 2}, "`multi_grid` .* Received: multi_grid=2"),
        ("resnet50", {"multi_grid": (2, 2, 4)}, r"`multi_grid` .* begins with 1 .*\(2, 2, 4\)"),
        ("resnet50_beta", {"multi_grid": (1, 2, 0)}, r"`multi_grid` .*multi_grid=\(1, 2, 0\)"),
        ("xception41", {"multi_grid": (1, 2)}, r"`multi_grid` must be a list of 3.*\(1, 2\)"),
        ("resnet50_beta", {"padding": "end"}, "`padding` must be left out: the backbone"),
        ("mobilenet_v2", {"padding": "valid"}, "`padding` .* Received: padding='valid'"),
        ("mobilenet_v3_small", {"padding": "valid"}, "`padding` .* Received: padding='valid'"),
        ("mobilenet_v2", {"depth_multiplier": 0}, "`depth_multiplier` must be a positive number"),
        ("mobilenet_v2", {"divisible_by": 8.0}, "`divisible_by` .* Received: divisible_by=8.0"),
    ],
)
def test_errors_name_argument_and_value(build, arguments, words):
    if isinstance(build, str):
        build = partial(backbones.build, build, (None, None, 3))
    with pytest.raises(ValueError, match=words):
        build(**arguments)


def scaled(pixels: np.ndarray, mode: str) -> np.ndarray:
    inputs = keras.Input((None, None, pixels.shape[-1]))
    return keras.Model(inputs, backbones.preprocess(inputs, mode))(pixels).numpy()


@pytest.mark.parametrize("mode", ["tf", "torch", "caffe", "mean"])
def test_preprocessing_is_that_of_keras_applications(mode):
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 5, 7, 3)).astype("float32")
    preprocess_input = keras.applications.imagenet_utils.preprocess_input
    theirs = preprocess_input(pixels.copy(), mode="caffe" if mode == "mean" else mode)
    expected = theirs[..., ::-1] if mode == "mean" else theirs  # VGG's mean, without BGR
    np.testing.assert_allclose(scaled(pixels, mode), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "mode, pixels, expected",
    [
        ("caffe_deeplab", [122.675, 116.669, 104.008], [0, 0, 0]),
        ("caffe_deeplab", [200, 100, 50], [50 - 104.008, 100 - 116.669, 200 - 122.675]),
        # Other channels than three.
        ("tf", [51], [51 / 127.5 - 1]),
        ("torch", [123.675, 116.28, 103.53, 57.6244], [0, 0, 0, 1 - 1.98602]),
        ("torch", [57.6244, 0], [1 - 1.98602, -1.98602]),
        ("mean", [100], [100 - (123.68 + 116.779 + 103.939) / 3]),
        ("caffe", [1, 2, 3, 4], [3 - 103.939, 2 - 116.779, 1 - 123.68, 4 - 114.79933]),
    ],
)
def test_preprocessing_of_a_pixel(mode, pixels, expected):
    found = scaled(np.float32(pixels).reshape(1, 1, 1, -1), mode)
    np.testing.assert_allclose(np.ravel(found), expected, atol=1e-4)


def test_preprocessing_refuses_other_modes():
    with pytest.raises(ValueError, match="`preprocessing` .* Received: preprocessing='bgr'"):
        backbones.preprocess(keras.Input((None, None, 3)), "bgr")
