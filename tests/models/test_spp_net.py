from __future__ import annotations

import math

import keras
import numpy as np
import pytest
from calibration import calibrate, image
from networks import tiny

from keras_deeplab import SPPNet
from keras_deeplab.backbones import alexnet
from keras_deeplab.models import SegmentationModel


def small(num_classes: int = 3, backbone=None, **arguments) -> keras.Model:
    arguments = {"levels": (3, 2, 1), "dense": (12, 10), **arguments}
    return SPPNet(num_classes, backbone or tiny(), **arguments)


def pooled(x: np.ndarray, levels: tuple[int, ...], pooling: str) -> np.ndarray:
    """The bins of the paper's section 2.2, one by one."""
    height, width = x.shape[1:3]
    values = []
    for bins in levels:
        for row in range(bins):
            rows = slice(math.floor(row * height / bins), math.ceil((row + 1) * height / bins))
            for column in range(bins):
                left = math.floor(column * width / bins)
                part = x[:, rows, left : math.ceil((column + 1) * width / bins)]
                values.append(getattr(part, pooling)(axis=(1, 2)))
    return np.concatenate(values, axis=1)


@pytest.mark.parametrize("pooling, method", [("max", "max"), ("average", "mean")])
def test_logits_are_those_of_plain_loops_and_matrices(pooling, method):
    model = calibrate(small(pooling=pooling), image(96, 96, batch=2))
    for size in ((96, 160), (225, 97)):
        pixels = image(*size, batch=2)
        x = pooled(model.backbone(pixels).numpy(), (3, 2, 1), method)
        assert x.shape == (2, 12 * 14)
        for name in ("dense1", "dense2", "logits"):
            kernel, bias = model.get_layer(name).get_weights()
            x = x @ kernel + bias
            x = x if name == "logits" else np.maximum(x, 0)
        assert x.std() > 1e-2
        np.testing.assert_allclose(model(pixels), x, rtol=1e-4, atol=1e-4 * x.std())
    assert not isinstance(model, SegmentationModel)
    assert model.output_stride == 32


@pytest.mark.parametrize("last", ["max", "average", "padded"])
def test_the_pyramid_replaces_the_pooling_that_a_network_ends_in(last):
    network = tiny()
    x = network.output
    if last == "padded":
        x = keras.layers.ZeroPadding2D(1)(x)
    pool = keras.layers.AveragePooling2D if last == "average" else keras.layers.MaxPooling2D
    pooling = keras.Model(network.input, pool(2)(x), name="pooling")
    model = small(backbone=pooling)
    assert model.backbone.layers[-1].name == "add32"
    assert model.output_stride == 32
    x = image(64, 96)
    np.testing.assert_allclose(model.backbone(x), network(x), rtol=1e-4, atol=1e-5)
    again = SPPNet.from_config(model.get_config())
    assert again.backbone.layers[-1].name == "add32"


@pytest.mark.parametrize("pool_ceil", [True, False])
def test_on_vgg16_too_or_the_last_pooling_stays_in_front_of_the_pyramid(pool_ceil):
    arguments = {"levels": (2, 1), "dense": (), "pooling": "average"}
    arguments["backbone_options"] = {"pool_ceil": pool_ceil}
    model = SPPNet(3, "vgg16", replace_pooling=False, **arguments)
    calibrate(model, image(64, 64, batch=2))
    assert model.backbone.layers[-1].name == "block5_pool"
    assert model.output_stride == 32
    replacing = SPPNet(3, "vgg16", **arguments)
    assert replacing.backbone.layers[-1].name == "block5_conv3"
    assert replacing.output_stride == 16
    assert replacing.get_config()["preprocessing"] == "mean"
    replacing.set_weights(model.get_weights())
    x = image(80, 112)
    # 80 and 112 are 5 and 7 at stride 16: an odd map is where rounding makes a difference.
    features = replacing.backbone(replacing.get_layer("preprocess")(x)).numpy()
    assert features.shape[1:3] == (5, 7)
    if not pool_ceil:
        features = features[:, :4, :6]
    rows, columns = features.shape[1:3]
    plain = np.stack(
        [
            features[:, i : i + 2, j : j + 2].max(axis=(1, 2))
            for i in range(0, rows, 2)
            for j in range(0, columns, 2)
        ],
        axis=1,
    ).reshape(1, -(-rows // 2), -(-columns // 2), 512)
    kernel, bias = model.get_layer("logits").get_weights()
    expected = pooled(plain, (2, 1), "mean") @ kernel + bias
    assert expected.std() > 1e-2
    np.testing.assert_allclose(model(x), expected, rtol=1e-4, atol=1e-4 * expected.std())
    assert np.abs(replacing(x) - expected).max() > 1e-2 * expected.std()
    assert model.get_config()["replace_pooling"] is False


def test_a_network_that_ends_finer_than_it_was_keeps_all_its_strides():
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 3, strides=4, padding="same", activation="tanh", name="down")(inputs)
    x = keras.layers.Conv2D(4, 3, padding="same", activation="tanh", name="deep")(x)
    network = keras.Model(inputs, keras.layers.UpSampling2D(2)(x), name="hourglass")
    model = small(backbone=network)
    assert model.backbone.get_layer("deep").dilation_rate == (1, 1)
    x = image(64, 64)
    np.testing.assert_allclose(model.backbone(x), network(x), rtol=1e-4, atol=1e-5)


def test_dropout_works_in_training_alone():
    model = calibrate(small(dropout=0.9), image(64, 64, batch=2))
    x = image(64, 64)
    np.testing.assert_array_equal(model(x), model(x))
    network = keras.Model(model.input, model.get_layer("dense1_dropout").output)
    assert np.mean(network(x, training=True) == 0) > np.mean(network(x) == 0) + 0.2


def test_parameters_and_defaults_on_alexnet():
    by_name = SPPNet(3, "alexnet", dense=(4,))
    assert by_name.output_stride == 16
    assert by_name.get_config()["preprocessing"] == "torch"
    head = 256 * 50 * 4 + 4 + 4 * 3 + 3
    assert by_name.count_params() == alexnet().count_params() + head


@pytest.mark.slow
def test_the_default_is_the_papers_head_on_vgg16():
    model = SPPNet(1000)
    assert model.count_params() == 14_714_688 + 50 * 512 * 4096 + 4096 + 16_781_312 + 4_097_000
    assert model(image(180, 224)).shape == (1, 1000)
