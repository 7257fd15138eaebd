from __future__ import annotations

import json
from pathlib import Path

import keras
import numpy as np
import pytest
from calibration import calibrate, image
from networks import tiny, tiny_sequential

from keras_deeplab import DeepLabV3, DeepLabV3Plus
from keras_deeplab.graph import geometry, with_output_stride
from keras_deeplab.graph.network import leaf_layers


def mobilenet() -> keras.Model:
    """Of a fixed size, which does not bind a model on it."""
    return keras.applications.MobileNetV2((96, 96, 3), 0.35, include_top=False, weights=None)


def small(cls: type, backbone: keras.Model, **arguments) -> keras.Model:
    return cls(3, backbone, aspp_filters=8, **arguments)


@pytest.fixture(scope="module", params=[tiny, tiny_sequential, mobilenet])
def network(request) -> keras.Model:
    network = request.param()
    height, width = (n or 64 for n in network.input_shape[1:3])
    return calibrate(network, image(height, width, batch=2))


@pytest.fixture(scope="module")
def model(network) -> keras.Model:
    return small(DeepLabV3Plus, network, output_stride=16)


@pytest.mark.parametrize("finer", [False, True])
def test_features_are_those_of_the_users_network(network, finer):
    """Its loaded weights are kept: at its own stride, and rewritten as `graph` does."""
    own = geometry(network).output.stride[0]
    reference = with_output_stride(network, 8, (None, None)) if finer else network
    model = small(DeepLabV3, network, output_stride=own)
    backbone = model.with_output_stride(8).backbone if finer else model.backbone
    x = image(*((64, 96) if finer else (n or 70 for n in network.input_shape[1:3])))
    expected = reference(x).numpy()
    assert expected.std() > 1e-2
    # The package's batch norms round elsewhere than Keras': up to 2e-4 on a MobileNetV2, where an
    # epsilon a tenth too large gives 3.
    np.testing.assert_allclose(backbone(x), expected, atol=1e-3 * expected.std())


def test_weights_are_copied_not_shared(network, model):
    copied = leaf_layers(model.backbone)
    for name, layer in leaf_layers(network).items():
        if not layer.weights:
            continue
        for mine, its in zip(copied[name].weights, layer.weights, strict=True):
            assert mine is not its
            np.testing.assert_array_equal(mine, its)
    total = sum(layer.count_params() for layer in model.layers)
    assert model.count_params() == total  # the user's network is not held beside its copy
    own = {id(weight) for weight in network.weights}
    assert not own & {id(weight) for weight in model.weights}


def test_the_users_network_is_not_modified():
    network = calibrate(tiny(), image(64, 64, batch=2))
    x = image(70, 70)

    def state():
        trainable = [layer.trainable for layer in leaf_layers(network).values()]
        nodes = [len(layer._inbound_nodes) for layer in leaf_layers(network).values()]
        config = json.dumps(keras.saving.serialize_keras_object(network), sort_keys=True)
        return config, network.get_weights(), network(x).numpy(), trainable, nodes

    before = state()
    model = small(DeepLabV3Plus, network)
    model.trainable = False
    for weight in model.weights:
        weight.assign(weight * 0 + 3)
    model.with_output_stride(8)
    for old, new in zip(before, state(), strict=True):
        keras.tree.map_structure(np.testing.assert_array_equal, old, new)


def test_comes_back_from_a_file(model, tmp_path: Path):
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(model)
    assert json.dumps(loaded.get_config()) == json.dumps(model.get_config())
    x = image(50, 61)
    np.testing.assert_allclose(loaded(x), model(x), rtol=1e-5, atol=1e-5)
    assert model(image(1, 1)).shape == (1, 1, 1, 3)


def test_changing_a_model_twice(tmp_path: Path):
    """The configuration of a user's network is not used up by the first change."""
    model = small(DeepLabV3, tiny())
    config = json.dumps(model.get_config())
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for each in (model, loaded):
        assert each.with_num_classes(4).num_classes == 4
        fine = each.with_output_stride(8)
        assert fine.output_stride == 8
        assert json.dumps(each.get_config()) == config
    fine.save(tmp_path / "again.keras")
    x = image(33, 47)
    np.testing.assert_allclose(
        keras.models.load_model(tmp_path / "again.keras")(x), fine(x), rtol=1e-5, atol=1e-5
    )


def test_a_compiled_network_leaves_its_loss_behind():
    network = tiny()
    network.compile("adam", loss=lambda truth, prediction: prediction)
    model = small(DeepLabV3, network)
    assert "compile_config" not in model.get_config()["backbone"]
    assert not model.compiled
    assert model.with_output_stride(8)


def test_low_level_layer_is_found_or_named():
    found = small(DeepLabV3Plus, tiny())
    assert found.get_config()["low_level_layer"] == "stage4_out"
    named = small(DeepLabV3Plus, tiny(), low_level_layer="stage8_out")
    assert geometry(named)["decoder_low_level"].stride == (8, 8)
    assert found.with_output_stride(8).get_config()["low_level_layer"] == "stage4_out"


class Unsavable(keras.layers.Layer):
    """Without get_config for its argument."""

    def __init__(self, factor, **kwargs):
        super().__init__(**kwargs)

    def call(self, x):
        return x


def with_layer(layer: keras.layers.Layer, channels: int = 3, strides: int = 16) -> keras.Model:
    inputs = keras.Input((None, None, channels))
    x = keras.layers.Conv2D(4, 3, strides=strides, padding="same")(inputs)
    return keras.Model(inputs, layer(x), name="own")


def two_inputs() -> keras.Model:
    inputs = [keras.Input((None, None, 3)), keras.Input((None, None, 3))]
    return keras.Model(inputs, keras.layers.Add()(inputs), name="twin")


def doubler() -> keras.layers.Layer:
    return keras.layers.Lambda(lambda x: 2 * x, name="doubler")


@pytest.mark.parametrize(
    "network, words",
    [
        (lambda: with_layer(doubler()), "`backbone` .*'own'.*doubler' is a Lambda"),
        (
            lambda: with_layer(with_layer(doubler(), 4, 1)),
            "`backbone` .*'own'.*doubler' is a Lambda",
        ),
        (
            lambda: with_layer(Unsavable(object(), name="stubborn")),
            "`backbone` .*'stubborn' .*Unsavable.*get_config",
        ),
        (
            lambda: with_layer(keras.layers.GlobalAveragePooling2D()),
            r"`backbone` .* one output .*'own'.*\(None, 4\)",
        ),
        (
            lambda: with_layer(keras.layers.Flatten()),
            r"`backbone` .* one output .*\(None, None\)",
        ),
        (
            lambda: keras.Sequential([keras.layers.Conv2D(3, 3)], name="raw"),
            "`backbone` .* name=raw",
        ),
        (lambda: tiny(4), "`backbone` .* 3 channels of `input_shape`.*'tiny'"),
        (two_inputs, "`backbone` must be a network with one input .*'twin'"),
    ],
)
def test_networks_that_cannot_be_backbones(network, words):
    with pytest.raises(ValueError, match=words):
        small(DeepLabV3, network())
