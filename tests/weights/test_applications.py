"""keras.applications into the backbones of this package, with equal features."""

from __future__ import annotations

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


def mobilenet(alpha: float = 1.0, **changes) -> keras.Model:
    return keras.applications.MobileNetV2(alpha=alpha, **{**SHAPE, **changes})


# keras.applications' network, and the end of its features that the backbones here keep.
NETWORKS = {
    "resnet50": (lambda: keras.applications.ResNet50(**SHAPE), "conv5_block3_out"),
    "resnet101": (lambda: keras.applications.ResNet101(**SHAPE), "conv5_block3_out"),
    "vgg16": (lambda: keras.applications.VGG16(**SHAPE), "block5_pool"),
    "mobilenet_v2": (mobilenet, "block_16_project_BN"),
    "mobilenet_v2 half": (lambda: mobilenet(0.5), "block_16_project_BN"),
}
SLOW = ("resnet101",)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in NETWORKS]
)
def test_features_are_equal(name):
    build, last = NETWORKS[name]
    network = build()
    with_biases(network)
    # Few samples in a norm's statistics magnify what rounding leaves.
    calibrate(network, scaled(image(192, 256, batch=2)))
    features = keras.Model(network.inputs, network.get_layer(last).output)
    source = weights.open_checkpoint(network)
    options = source.backbone_arguments.get("backbone_options", {})
    if "stride_on" in source.backbone_arguments:
        options = {**options, "stride_on": source.backbone_arguments["stride_on"]}
    backbone = keras_deeplab.backbones.build(name.split()[0], (None, None, 3), **options)
    report = weights.load(backbone, network)
    assert report.missing_keys == ()
    for size in ((96, 128), (97, 131)):
        x = scaled(image(*size, seed=1))
        right = features(x, training=False).numpy()
        assert right.std() > 1e-2
        found = backbone(x, training=False).numpy()
        # Rounding alone gives up to 5e-4 on a ResNet50, a mistake more than 1e-2 (see below).
        assert np.abs(found - right).max() < 3e-3 * right.std()


def with_biases(network: keras.Model) -> None:
    random = np.random.default_rng(3)
    for layer in leaf_layers(network).values():
        for weight in layer.weights:
            if weight.name == "bias":
                weight.assign(random.normal(0, 0.1, weight.shape))


@pytest.mark.parametrize(
    "change", [{"epsilon": 1e-2}, {"stride_on": "3x3"}], ids=["epsilon", "stride"]
)
def test_a_mistake_shows(change):
    network = NETWORKS["resnet50"][0]()
    x = scaled(image(96, 128))
    calibrate(network, x)
    right = network(x, training=False).numpy()
    options = {"stride_on": "1x1", "epsilon": 1.001e-5, **change}
    backbone = keras_deeplab.backbones.build("resnet50", (None, None, 3), **options)
    weights.load(backbone, network)
    assert np.abs(backbone(x, training=False).numpy() - right).max() > 1e-2 * right.std()


def test_what_the_network_needs_is_in_the_models_configuration():
    network = NETWORKS["resnet50"][0]()
    model = keras_deeplab.DeepLabV3(4, weights=network)
    config = model.get_config()
    assert config["backbone"] == "resnet50"
    assert (config["stride_on"], config["preprocessing"]) == ("1x1", "caffe")
    assert config["backbone_options"]["epsilon"] == 1.001e-5
    assert config["epsilon"] == 1e-5  # the head's own
    assert not any(path.startswith("backbone/") for path in model.transfer_report.missing_keys)


def test_a_classifier_whole():
    network = keras.applications.MobileNetV2(weights=None, classes=7, classifier_activation=None)
    x = image(224, 224)
    calibrate(network, scaled(x))
    model = weights.from_pretrained(network)
    assert type(model) is keras_deeplab.SPPNet
    assert model.transfer_report.missing_keys == model.transfer_report.unexpected_keys == ()
    right = network(scaled(x), training=False).numpy()
    assert right.std() > 1e-2
    np.testing.assert_allclose(model(x, training=False), right, atol=1e-4 * right.std())


def test_caffe_preprocessing_is_kerass():
    x = image(33, 35)
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, keras_deeplab.backbones.preprocess(inputs, "caffe"))
    right = keras.applications.resnet50.preprocess_input(x.copy())
    np.testing.assert_allclose(model(x), right, atol=1e-4)


@pytest.fixture(scope="module")
def published_file(tmp_path_factory):
    network = mobilenet()
    path = tmp_path_factory.mktemp("published") / "mobilenet_v2_no_top.h5"
    write_applications(path, network)
    return network, path


def test_a_published_file(published_file):
    network, path = published_file
    model = keras_deeplab.DeepLabV3Plus(3, weights=path, separable=True)
    assert model.get_config()["backbone_options"]["padding"] == "end"
    found = model.backbone.get_layer("block7_depthwise_conv").kernel
    right = network.get_layer("block_7_depthwise").weights[0]
    np.testing.assert_array_equal(found, right)
    with pytest.raises(WeightsError, match=r"keras\.applications mobilenet_v2 without a head"):
        weights.from_pretrained(path)
    with pytest.raises(WeightsError, match="backbone 'mobilenet_v2', which does not have"):
        weights.load(keras_deeplab.DeepLabV3(3, "xception41"), path)


@pytest.mark.parametrize("share", [0.1, 0.6, 0.999])
def test_a_truncated_file_is_refused(published_file, tmp_path, share):
    content = published_file[1].read_bytes()
    path = tmp_path / "cut.h5"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(WeightsError, match=r"cut\.h5: it is a damaged HDF5 file"):
        keras_deeplab.DeepLabV3(3, weights=path)
