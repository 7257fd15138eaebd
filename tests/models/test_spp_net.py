from __future__ import annotations

import math
from pathlib import Path

import keras
import numpy as np
import pytest
from calibration import calibrate, image
from networks import tiny

from keras_deeplab import SPPNet
from keras_deeplab.backbones import alexnet
from keras_deeplab.models import SegmentationModel

SIZES = [(1, 1), (2, 3), (97, 129), (200, 33)]


def small(num_classes: int = 3, backbone=None, **arguments) -> keras.Model:
    arguments = {"levels": (3, 2, 1), "dense": (12, 10), **arguments}
    return SPPNet(num_classes, backbone or tiny(), **arguments)


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return calibrate(small(), image(96, 128, batch=2))


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
@pytest.mark.parametrize("size", [(96, 160), (225, 97)])
def test_logits_are_those_of_plain_loops_and_matrices(pooling, method, size):
    network = calibrate(tiny(), image(96, 96, batch=2))
    model = calibrate(small(backbone=network, pooling=pooling), image(96, 96, batch=2))
    network.set_weights(model.backbone.get_weights())
    pixels = image(*size, batch=2)
    x = pooled(network(pixels).numpy(), (3, 2, 1), method)
    assert x.shape == (2, 12 * 14)
    for name in ("dense1", "dense2", "logits"):
        kernel, bias = model.get_layer(name).get_weights()
        x = x @ kernel + bias
        x = x if name == "logits" else np.maximum(x, 0)
    assert x.std() > 1e-2
    np.testing.assert_allclose(model(pixels), x, rtol=1e-4, atol=1e-4 * x.std())


def test_images_in_a_batch_do_not_mix(model):
    x = image(64, 96, batch=3)
    alone = np.concatenate([model(one[None]) for one in x])
    np.testing.assert_allclose(model(x), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name, stride", [("alexnet", 16), ("resnet50", 32)])
def test_backbones_by_name(name, stride, tmp_path: Path):
    model = SPPNet(3, name, levels=(2, 1), dense=(4,))
    assert model.output_stride == stride
    assert model.get_config()["preprocessing"] == "torch"
    calibrate(model, image(64, 64, batch=2))
    model.save(tmp_path / "model.keras")
    x = image(33, 70)
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(x), model(x))


@pytest.mark.parametrize("options", [{}, {"pool_size": 3}])
def test_on_vgg16_the_pyramid_replaces_the_last_pooling(options):
    model = SPPNet(3, "vgg16", levels=(2, 1), dense=(4,), backbone_options=options)
    assert model.backbone.layers[-1].name == "block5_conv3"
    assert model.output_stride == 16
    assert model.backbone.count_params() == 14_714_688
    assert model.get_config()["preprocessing"] == "mean"


@pytest.mark.parametrize("last", ["max", "average", "padded"])
def test_so_it_does_in_a_network_of_ones_own(last):
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


@pytest.mark.parametrize("options", [{}, {"pool_ceil": False}])
def test_the_last_pooling_can_stay_in_front_of_the_pyramid(options):
    arguments = {"levels": (2, 1), "dense": (), "pooling": "average", "backbone_options": options}
    model = SPPNet(3, "vgg16", replace_pooling=False, **arguments)
    calibrate(model, image(64, 64, batch=2))
    assert model.backbone.layers[-1].name == "block5_pool"
    assert model.output_stride == 32
    replacing = SPPNet(3, "vgg16", **arguments)
    replacing.set_weights(model.get_weights())
    x = image(80, 112)
    # 80 and 112 are 5 and 7 at stride 16: an odd map is where rounding makes a difference.
    pixels = replacing.get_layer("preprocess")(x)
    features = replacing.backbone(pixels).numpy()
    assert features.shape[1:3] == (5, 7)
    if options:
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
    again = SPPNet.from_config(model.get_config())
    assert again.backbone.layers[-1].name == "block5_pool"


def test_a_network_that_ends_finer_than_it_was_keeps_all_its_strides():
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 3, strides=4, padding="same", activation="tanh", name="down")(inputs)
    x = keras.layers.Conv2D(4, 3, padding="same", activation="tanh", name="deep")(x)
    network = keras.Model(inputs, keras.layers.UpSampling2D(2)(x), name="hourglass")
    model = small(backbone=network)
    assert model.backbone.get_layer("deep").dilation_rate == (1, 1)
    x = image(64, 64)
    np.testing.assert_allclose(model.backbone(x), network(x), rtol=1e-4, atol=1e-5)


def test_it_is_a_classifier_at_its_backbones_stride(model):
    assert not isinstance(model, SegmentationModel)
    assert model.output_stride == 32


def test_twenty_steps_at_two_sizes_in_turn_halve_the_loss():
    model = small(dense=(32,), dropout=0.0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-2), loss)
    random = np.random.default_rng(0)
    labels = np.arange(12) % 3
    losses = []
    for step in range(20):
        size = (64, 64) if step % 2 else (49, 80)  # two sizes in turn, one optimizer
        pixels = 60 + 60 * labels[:, None, None, None] + random.normal(0, 20, (12, *size, 3))
        losses.append(float(model.train_on_batch(pixels, labels)))
    last = 20 * losses[-1] - 19 * losses[-2]  # Keras gives the mean of all steps so far
    assert last < 0.5 * losses[0]
    assert model.optimizer.iterations == 20


def test_dropout_works_in_training_alone():
    model = calibrate(small(dropout=0.9), image(64, 64, batch=2))
    x = image(64, 64)
    np.testing.assert_array_equal(model(x), model(x))
    network = keras.Model(model.input, model.get_layer("dense1_dropout").output)
    assert np.mean(network(x, training=True) == 0) > np.mean(network(x) == 0) + 0.2


def test_parameters():
    dense = 256 * 50 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 1000 + 1000
    assert SPPNet(1000, alexnet()).count_params() == 2_469_696 + dense == 75_780_904


@pytest.mark.slow
def test_the_default_is_the_papers_head_on_vgg16():
    model = SPPNet(1000)
    assert model.count_params() == 14_714_688 + 50 * 512 * 4096 + 4096 + 16_781_312 + 4_097_000
    assert model(image(180, 224)).shape == (1, 1000)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"num_classes": 1}, "`num_classes` .* Received: num_classes=1.*use 2"),
        ({"num_classes": True}, "`num_classes` .* Received: num_classes=True"),
        ({"backbone": "resnet18"}, "`backbone` must be one of .* Received: backbone='resnet18'"),
        ({"levels": ()}, r"`levels` .* Received: levels=\(\)"),
        ({"levels": (2, 0)}, r"`levels` .* Received: levels=\(2, 0\)"),
        ({"levels": 3}, "`levels` .* Received: levels=3"),
        ({"dense": 256}, "`dense` .* Received: dense=256"),
        ({"dense": (256, -1)}, r"`dense` .* Received: dense=\(256, -1\)"),
        ({"dense": (True,)}, r"`dense` .* Received: dense=\(True,\)"),
        ({"dropout": 1.0}, "`dropout` .* Received: dropout=1.0"),
        ({"dropout": -0.1}, "`dropout` .* Received: dropout=-0.1"),
        ({"pooling": "mean"}, "`pooling` .* Received: pooling='mean'"),
        ({"preprocessing": "bgr"}, "`preprocessing` .* Received: preprocessing='bgr'"),
        (
            {"backbone_options": {"padding": "same"}},
            "`padding` .*'tiny'.*padding='same'",
        ),
        ({"input_shape": (0, None, 3)}, r"`input_shape` .* Received: input_shape=\(0, None, 3\)"),
        ({"input_shape": (None, None, 4)}, "`backbone` .* 4 channels of `input_shape`.* takes 3"),
        ({"dtype": "float31"}, "`dtype` .* Received: dtype='float31'"),
    ],
)
def test_errors_name_argument_and_value(arguments, words):
    with pytest.raises(ValueError, match=words):
        SPPNet(**{"num_classes": 3, "backbone": tiny(), **arguments})
