"""keras.applications into the backbones of this package, with equal features."""

from __future__ import annotations

import inspect

import keras
import numpy as np
import pytest
from calibration import calibrate, image

import keras_deeplab
from keras_deeplab import weights
from keras_deeplab.graph.network import leaf_layers

pytestmark = pytest.mark.slow

SHAPE = {"input_shape": (None, None, 3), "include_top": False, "weights": None}


def scaled(pixels: np.ndarray) -> np.ndarray:
    return (pixels / 127.5 - 1).astype("float32")


def living(network: keras.Model, x: np.ndarray) -> keras.Model:
    """The network with random biases and norms, under which its features vary."""
    random = np.random.default_rng(3)
    for layer in leaf_layers(network).values():
        for weight in layer.weights:
            if weight.name == "bias":
                weight.assign(random.normal(0, 0.1, weight.shape))
    return calibrate(network, x)


@pytest.fixture(scope="module")
def resnet50() -> keras.Model:
    # Few samples in a norm's statistics magnify what rounding leaves.
    return living(keras.applications.ResNet50(**SHAPE), scaled(image(160, 192, batch=2)))


# Rounding alone gives up to 5e-4 of a standard deviation on a ResNet50, a mistake more than 1e-2.
@pytest.mark.parametrize(
    "name, last",
    [
        ("resnet50", "conv5_block3_out"),
        ("vgg16", "block5_pool"),
        ("mobilenet_v2", "block_16_project_BN"),
    ],
)
def test_features_are_equal(name, last, resnet50):
    network = resnet50
    if name != "resnet50":
        build = {"vgg16": keras.applications.VGG16, "mobilenet_v2": keras.applications.MobileNetV2}
        network = living(build[name](**SHAPE), scaled(image(64, 96, batch=2)))
    needed = dict(weights.open_checkpoint(network).backbone_arguments)
    options = {**needed.pop("backbone_options", {}), **needed}
    del options["preprocessing"]
    backbone = keras_deeplab.backbones.build(name, (None, None, 3), **options)
    assert weights.load(backbone, network).missing_keys == ()
    x = scaled(image(97, 131, seed=1))
    right = keras.Model(network.inputs[0], network.get_layer(last).output)(x, training=False)
    assert np.std(right) > 1e-2
    assert np.abs(backbone(x, training=False) - right).max() < 3e-3 * np.std(right)


def test_the_arguments_that_the_network_needs(resnet50):
    found = weights.open_checkpoint(resnet50)
    known = inspect.signature(keras_deeplab.DeepLabV3).parameters
    assert found.arguments("DeepLabV3", known) == {
        "backbone": "resnet50",
        "stride_on": "1x1",
        "preprocessing": "caffe",
        "backbone_options": {"epsilon": 1.001e-5},  # the head has its own
    }
    known = inspect.signature(keras_deeplab.UNet).parameters
    options = found.arguments("UNet", known)["backbone_options"]
    assert options == {"epsilon": 1.001e-5, "stride_on": "1x1"}


def test_a_classifier_whole():
    arguments = {"weights": None, "classes": 7, "classifier_activation": None}
    network = keras.applications.MobileNetV2((64, 64, 3), 0.35, **arguments)
    living(network, scaled(image(64, 64, batch=4)))
    model = weights.from_pretrained(network)
    assert type(model) is keras_deeplab.SPPNet
    assert model.transfer_report.missing_keys == model.transfer_report.unexpected_keys == ()
    x = image(64, 64, seed=1)
    right = network(scaled(x), training=False).numpy()
    assert right.std() > 1e-2
    np.testing.assert_allclose(model(x, training=False), right, atol=3e-3 * right.std())
