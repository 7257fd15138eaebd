"""torchvision's networks beyond the parity cases: depths, heads that are absent, other heads."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import safetensors.numpy
from calibration import image
from parity import state

import keras_deeplab
from keras_deeplab import weights
from keras_deeplab.graph.network import own_weights
from keras_deeplab.weights import WeightsError
from keras_deeplab.weights.names import tables, torchvision
from keras_deeplab.weights.transfer import weighted_layers

SUFFIXES = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean"}
SUFFIXES |= {"moving_variance": "running_var", "kernel": "weight", "bias": "bias"}


def scattered(model: keras.Model) -> keras.Model:
    random = np.random.default_rng(1)
    for weight in model.weights:
        low, high = (0.5, 1.5) if weight.name in ("gamma", "moving_variance") else (-0.2, 0.2)
        weight.assign(random.uniform(low, high, weight.shape))
    return model


def as_torchvision_writes_it(model: keras.Model, layers: dict[str, str]) -> dict[str, np.ndarray]:
    arrays = {}
    for path, layer in weighted_layers(model).items():
        for weight in own_weights(layer):
            value = np.array(weight)
            if weight.name == "kernel" and value.ndim == 2:
                value = value.T
            elif weight.name == "kernel" and isinstance(layer, keras.layers.DepthwiseConv2D):
                value = np.moveaxis(value, (2, 3), (0, 1))
            elif weight.name == "kernel":
                value = np.moveaxis(value, (3, 2), (0, 1))
            arrays[f"{layers[path]}.{SUFFIXES[weight.name]}"] = np.ascontiguousarray(value)
    return arrays


def written(tmp_path, arrays):
    path = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file(arrays, path)
    return path


def resnet_names(depth: int, prefix: str = "") -> dict[str, str]:
    units = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}[depth]
    return tables.after(prefix, tables.resnet(torchvision.RESNET, units))


@pytest.mark.slow
def test_deeplabv3_resnet101_without_auxiliary_head(tmp_path):
    model = scattered(
        keras_deeplab.DeepLabV3(21, "resnet101", output_stride=8, multi_grid=(1, 1, 1), dropout=0.5)
    )
    layers = {**resnet_names(101, "backbone."), **torchvision.HEAD}
    path = written(tmp_path, as_torchvision_writes_it(model, layers))
    found = weights.from_pretrained(path)
    assert found.transfer_report.missing_keys == found.transfer_report.unexpected_keys == ()
    assert found.get_config() == model.get_config()
    x = image(65, 97)
    np.testing.assert_array_equal(found(x, training=False), model(x, training=False))


@pytest.mark.slow
def test_a_resnet_classifier(tmp_path):
    model = scattered(keras_deeplab.SPPNet(9, "resnet50", levels=(1,), pooling="average", dense=()))
    layers = {**resnet_names(50), "logits": "fc"}
    path = written(tmp_path, as_torchvision_writes_it(model, layers))
    found = weights.from_pretrained(path)
    x = image(65, 97)
    np.testing.assert_array_equal(found(x, training=False), model(x, training=False))
    assert found.get_config()["backbone_options"] == model.get_config()["backbone_options"]
    other = keras_deeplab.DeepLabV3Plus(3, weights=path)
    assert other.get_config()["backbone"] == "resnet50"
    stem = other.backbone.get_layer("stem_conv").kernel
    np.testing.assert_array_equal(stem, model.backbone.get_layer("stem_conv").kernel)


def test_the_auxiliary_head_comes_along(shared, tmp_path):
    arrays = state(shared, "torchvision_deeplabv3_resnet50")
    model = weights.from_pretrained(written(tmp_path, arrays))
    paths = {path for path in model.transfer_report.loaded if path.startswith("auxiliary/")}
    assert len(paths) == 3
    assert not any("aux_classifier" in name for name in model.transfer_report.unexpected_keys)
    without = keras_deeplab.DeepLabV3(21, "resnet50", output_stride=8, multi_grid=(1, 1, 1))
    report = weights.load(without, tmp_path / "weights.safetensors")
    assert report.missing_keys == ()
    assert all(name.startswith("auxiliary/") for name in report.unexpected_keys)


def test_another_head_on_a_known_network_gives_its_backbone(shared, tmp_path):
    arrays = state(shared, "torchvision_deeplabv3_resnet50")
    fcn = {name: a for name, a in arrays.items() if name.startswith("backbone.")}
    fcn["classifier.0.weight"] = np.zeros((512, 2048, 3, 3), np.float32)
    path = written(tmp_path, fcn)
    with pytest.raises(WeightsError, match="without a head"):
        weights.from_pretrained(path)
    model = keras_deeplab.DeepLabV3(3, weights=path)
    assert "classifier.0.weight" in model.transfer_report.unexpected_keys
    assert set(model.transfer_report.missing_keys) >= {"logits", "head/conv"}


@pytest.mark.parametrize(
    "arrays, message",
    [
        (
            {"layer4.0.conv3.weight": (4, 4, 1, 1), "fc.weight": (5, 4)},
            "not a ResNet-50",
        ),
        ({"conv1.weight": (64, 3, 7, 7), "fc.weight": (1000, 512)}, "not a ResNet-50"),
        ({"something.weight": (3, 3)}, "1 arrays of no known network"),
    ],
)
def test_other_networks_are_refused(tmp_path, arrays, message):
    arrays = {name: np.zeros(shape, np.float32) for name, shape in arrays.items()}
    with pytest.raises(WeightsError, match=message):
        weights.from_pretrained(written(tmp_path, arrays))
