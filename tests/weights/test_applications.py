"""keras.applications into the backbones of this package, with equal features."""

from __future__ import annotations

import inspect

import keras
import numpy as np
import pytest
from calibration import calibrate, image
from sources import write_applications

import keras_deeplab
from keras_deeplab import weights
from keras_deeplab.graph.network import leaf_layers
from keras_deeplab.weights import WeightsError

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


def features(network: keras.Model, last: str) -> keras.Model:
    return keras.Model(network.inputs[0], network.get_layer(last).output)


@pytest.fixture(scope="module")
def resnet50() -> keras.Model:
    # Few samples in a norm's statistics magnify what rounding leaves.
    return living(keras.applications.ResNet50(**SHAPE), scaled(image(160, 192, batch=2)))


def backbone_like(name: str, network: keras.Model, **changes) -> keras.Model:
    needed = dict(weights.open_checkpoint(network).backbone_arguments)
    options = {**needed.pop("backbone_options", {}), **needed, **changes}
    del options["preprocessing"]
    backbone = keras_deeplab.backbones.build(name, (None, None, 3), **options)
    assert weights.load(backbone, network).missing_keys == ()
    return backbone


def difference(found: keras.Model, right: keras.Model, size: tuple[int, int]) -> float:
    """The largest of the features, in parts of their standard deviation."""
    x = scaled(image(*size, seed=1))
    expected = right(x, training=False).numpy()
    assert expected.std() > 1e-2
    return np.abs(found(x, training=False) - expected).max() / expected.std()


# Rounding alone gives up to 5e-4 on a ResNet50, a mistake more than 1e-2.
def test_a_resnets_features_are_equal_and_a_mistake_shows(resnet50):
    right = features(resnet50, "conv5_block3_out")
    backbone = backbone_like("resnet50", resnet50)
    assert difference(backbone, right, (97, 131)) < 3e-3
    wrong = backbone_like("resnet50", resnet50, stride_on="3x3")
    assert difference(wrong, right, (96, 128)) > 1e-2


@pytest.mark.parametrize(
    "name, build, last",
    [
        ("vgg16", lambda: keras.applications.VGG16(**SHAPE), "block5_pool"),
        (
            "mobilenet_v2",
            lambda: keras.applications.MobileNetV2(alpha=0.5, **SHAPE),
            "block_16_project_BN",
        ),
    ],
)
def test_features_are_equal(name, build, last):
    network = living(build(), scaled(image(96, 128, batch=2)))
    right = features(network, last)
    assert difference(backbone_like(name, network), right, (97, 131)) < 3e-3


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
    network = keras.applications.MobileNetV2((96, 96, 3), 0.35, **arguments)
    x = image(96, 96)
    calibrate(network, scaled(image(96, 96, batch=4)))
    model = weights.from_pretrained(network)
    assert type(model) is keras_deeplab.SPPNet
    assert model.transfer_report.missing_keys == model.transfer_report.unexpected_keys == ()
    right = network(scaled(x), training=False).numpy()
    assert right.std() > 1e-2
    np.testing.assert_allclose(model(x, training=False), right, atol=3e-3 * right.std())


def test_a_published_file(tmp_path):
    network = keras.applications.MobileNetV2(alpha=0.35, **SHAPE)
    path = write_applications(tmp_path / "no_top.h5", network)
    found = weights.open_checkpoint(path)
    assert (found.backbone, found.model) == ("mobilenet_v2", None)
    assert found.backbone_arguments == {
        "preprocessing": "tf",
        "padding": "end",
        "depth_multiplier": 0.35,
        "divisible_by": 8,
    }
    np.testing.assert_array_equal(
        found.arrays["backbone/block7_depthwise_conv/kernel"],
        network.get_layer("block_7_depthwise").weights[0],
    )
    with pytest.raises(WeightsError, match=r"keras\.applications mobilenet_v2 without a head"):
        weights.from_pretrained(path)
    content = path.read_bytes()
    for share in (0.1, 0.6, 0.999):
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(WeightsError, match=r"no_top\.h5: it cannot be read"):
            weights.open_checkpoint(path)
