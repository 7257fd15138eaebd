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
    return keras.applications.MobileNetV2((96, 96, 3), 0.35, include_top=False, weights=None)


def small(cls: type, backbone: keras.Model, **arguments) -> keras.Model:
    return cls(3, backbone, aspp_filters=8, **arguments)


@pytest.fixture(scope="module", params=[tiny, tiny_sequential, mobilenet])
def network(request) -> keras.Model:
    network = request.param()
    height, width = (n or 64 for n in network.input_shape[1:3])
    return calibrate(network, image(height, width, batch=2))


def stride_16_or_less(network: keras.Model) -> int:
    return min(16, geometry(network).output.stride[0])


@pytest.fixture(scope="module")
def model(network) -> keras.Model:
    model = small(DeepLabV3Plus, network, output_stride=stride_16_or_less(network))
    for layer in (model.get_layer("aspp"), model.get_layer("logits")):
        random = np.random.default_rng(0)
        for weight in layer.weights:
            weight.assign(random.uniform(0.1, 0.5, weight.shape))
    return model


def test_features_are_those_of_the_users_network(network, model):
    """Its loaded weights are kept: at its own stride the model computes what it computed."""
    own = geometry(network).output.stride[0]
    features = small(DeepLabV3, network, output_stride=own).backbone
    height, width = (n or 70 for n in network.input_shape[1:3])
    x = image(height, width)
    expected = network(x).numpy()
    assert expected.std() > 1e-2
    # The package's batch norms round elsewhere than Keras': up to 2e-4 on a MobileNetV2, where an
    # epsilon a tenth too large gives 3.
    np.testing.assert_allclose(features(x), expected, atol=1e-3 * expected.std())


def test_weights_are_copied_not_shared(network, model):
    copied = leaf_layers(model.backbone)
    for name, layer in leaf_layers(network).items():
        if not layer.weights:
            continue
        assert copied[name] is not layer
        for mine, its in zip(copied[name].weights, layer.weights, strict=True):
            assert mine is not its
            np.testing.assert_array_equal(mine, its)
    total = sum(layer.count_params() for layer in model.layers)
    assert model.count_params() == total  # the user's network is not held beside its copy
    own = {id(weight) for weight in network.weights}
    assert not own & {id(weight) for weight in model.weights}


def test_the_users_network_is_not_modified(network):
    x = image(*(n or 70 for n in network.input_shape[1:3]))

    def state():
        trainable = [layer.trainable for layer in leaf_layers(network).values()]
        nodes = [len(layer._inbound_nodes) for layer in leaf_layers(network).values()]
        config = json.dumps(keras.saving.serialize_keras_object(network), sort_keys=True)
        return config, network.get_weights(), network(x).numpy(), trainable, nodes

    before = state()
    model = small(DeepLabV3Plus, network, output_stride=stride_16_or_less(network))
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
    # What was loaded can do everything the first one could, also be saved again.
    loaded.with_output_stride(8).save(tmp_path / "again.keras")
    again = keras.models.load_model(tmp_path / "again.keras")
    np.testing.assert_allclose(again(x), model.with_output_stride(8)(x), rtol=1e-5, atol=1e-5)


def test_a_fixed_size_of_the_network_does_not_bind_the_model(model):
    for size in ((1, 1), (97, 129), (33, 200)):
        assert model(image(*size)).shape == (1, *size, 3)


def test_features_at_a_finer_stride_are_the_graph_rewrites(network, model):
    fine = with_output_stride(network, 8, (None, None), own_batch_norms=True)
    x = image(64, 96)
    expected = fine(x).numpy()
    assert expected.std() > 1e-2
    features = model.with_output_stride(8).backbone(x)[0]
    np.testing.assert_allclose(features, expected, atol=1e-4 * expected.std())


def test_changing_a_model_twice():
    """The configuration of a user's network is not used up by the first change."""
    model = small(DeepLabV3, tiny())
    config = json.dumps(model.get_config())
    for _ in range(2):
        assert model.with_output_stride(8).output_stride == 8
        assert model.with_num_classes(4).num_classes == 4
        assert type(model).from_config(model.get_config()).output_stride == 16
    assert json.dumps(model.get_config()) == config


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
    low_level = named.get_layer("decoder_low_level")
    assert geometry(named)["decoder_low_level"].stride == (8, 8)
    assert low_level.input.shape[-1] == 8
    assert found.with_output_stride(8).get_config()["low_level_layer"] == "stage4_out"


class Unsavable(keras.layers.Layer):
    """Without get_config for its argument."""

    def __init__(self, factor, **kwargs):
        super().__init__(**kwargs)

    def call(self, x):
        return x


def with_layer(layer: keras.layers.Layer) -> keras.Model:
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 3, strides=16, padding="same")(inputs)
    return keras.Model(inputs, layer(x), name="own")


def test_lambda_is_refused_by_name():
    nested = with_layer(with_layer_on(4, keras.layers.Lambda(lambda x: 2 * x, name="doubler")))
    for network in (with_layer(keras.layers.Lambda(lambda x: 2 * x, name="doubler")), nested):
        with pytest.raises(ValueError, match="`backbone` .*'own'.*doubler' is a Lambda"):
            small(DeepLabV3, network)


def with_layer_on(channels: int, layer: keras.layers.Layer) -> keras.Model:
    inputs = keras.Input((None, None, channels))
    return keras.Model(inputs, layer(inputs), name="inner")


def test_a_layer_that_could_not_be_loaded_is_refused_by_name():
    with pytest.raises(ValueError, match="`backbone` .*'stubborn' .*Unsavable.*get_config"):
        small(DeepLabV3, with_layer(Unsavable(object(), name="stubborn")))


def two_inputs() -> keras.Model:
    inputs = [keras.Input((None, None, 3)), keras.Input((None, None, 3))]
    return keras.Model(inputs, keras.layers.Add()(inputs), name="twin")


@pytest.mark.parametrize(
    "network, words",
    [
        (lambda: None, "`backbone` .* Received: backbone=None"),
        (lambda: "vgg19", "`backbone` .* Received: backbone='vgg19'"),
        (
            lambda: with_layer(keras.layers.GlobalAveragePooling2D()),
            r"`backbone` .* one output .*'own'.*\(None, 4\)",
        ),
        (lambda: keras.Sequential([keras.layers.Conv2D(3, 3)], name="raw"), "`backbone` .*'raw'"),
        (lambda: tiny(4), "`backbone` .* 3 channels of `input_shape`.*'tiny'"),
        (two_inputs, "`backbone` must be a network with one input .*'twin'"),
        (
            lambda: with_layer(keras.layers.Flatten()),
            r"`backbone` .* one output .*\(None, None\)",
        ),
    ],
)
def test_networks_that_cannot_be_backbones(network, words):
    with pytest.raises(ValueError, match=words):
        small(DeepLabV3, network())
