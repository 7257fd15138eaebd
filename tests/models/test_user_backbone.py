from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pytest
from calibration import calibrate, image
from networks import tiny, tiny_sequential

from keras_deeplab import DeepLabV3, DeepLabV3Plus, weights
from keras_deeplab.graph import geometry, register_pointwise, with_output_stride
from keras_deeplab.graph.network import all_layers, leaf_layers
from keras_deeplab.layers import BatchNormalization, CompositeLayer


def of_one_size() -> keras.Model:
    """Its fixed size does not bind a model on it."""
    return tiny(size=(96, 64))


def small(cls: type, backbone: keras.Model, **arguments) -> keras.Model:
    return cls(3, backbone, aspp_filters=8, aspp_rates=(1,), **arguments)


@pytest.mark.slow
@pytest.mark.parametrize("make", [of_one_size, tiny_sequential])
def test_features_are_those_of_the_users_network(make):
    """Its loaded weights are kept: at its own stride, and rewritten as `graph` does."""
    network = make()
    height, width = (n or 64 for n in network.input_shape[1:3])
    calibrate(network, image(height, width, batch=2))
    model = small(DeepLabV3, network, output_stride=geometry(network).output.stride[0])
    fine, reference = model.with_output_stride(8), with_output_stride(network, 8, (None, None))
    x, larger = image(height, width), image(64, 96)
    pairs = (model.backbone(x), network(x)), (fine.backbone(larger), reference(larger))
    for found, expected in pairs:
        assert np.std(expected) > 1e-2
        # The package's batch norms round elsewhere than Keras'.
        np.testing.assert_allclose(found, expected, atol=1e-3 * np.std(expected))


@register_pointwise
@keras.saving.register_keras_serializable("test_user_backbone")
class Gate(keras.layers.Layer):
    """A user's layer of others, with names of its own or with those that Keras numbers."""

    def __init__(self, named: bool, **settings) -> None:
        super().__init__(**settings)
        self.named = named
        names = ("squeeze", "norm", "excite") if named else (None,) * 3
        self.squeeze = keras.layers.Dense(4, "relu", name=names[0])
        self.norm = keras.layers.BatchNormalization(name=names[1])
        self.excite = keras.layers.Dense(8, "sigmoid", name=names[2])

    def build(self, shape) -> None:
        names = ("scale", "scale") if self.named else (None, None)  # twice, or numbered by Keras
        starts = zip(names, ("ones", "zeros"), strict=True)
        self.scale, self.shift = (
            self.add_weight(shape=(8,), initializer=start, name=name) for name, start in starts
        )
        for layer, channels in ((self.squeeze, 8), (self.norm, 4), (self.excite, 4)):
            layer.build((*shape[:-1], channels))

    def call(self, x):
        return x * self.excite(self.norm(self.squeeze(x))) * self.scale + self.shift

    def get_config(self):
        return {**super().get_config(), "named": self.named}


@keras.saving.register_keras_serializable("test_user_backbone")
class Composite(CompositeLayer):
    """Others without names but for one, which has that of a layer that Keras numbers."""

    def __init__(self, **settings) -> None:
        super().__init__(**settings)
        self.norm = keras.layers.BatchNormalization(name="dense_1")
        self.squeeze, self.excite = keras.layers.Dense(4, "relu"), keras.layers.Dense(8, "sigmoid")

    def call(self, x):
        return self.excite(self.squeeze(self.norm(x)))

    def dilated_config(self, rate):
        return self.get_config()


@register_pointwise
@keras.saving.register_keras_serializable("test_user_backbone")
class Stacked(keras.layers.Layer):
    """A user's layer with its parts in a network, whose layers Keras numbers."""

    def __init__(self, functional: bool, **settings) -> None:
        super().__init__(**settings)
        self.functional = functional
        dense = keras.layers.Dense
        self.body = keras.Sequential([dense(4, "relu"), BatchNormalization(), dense(8, "sigmoid")])
        if functional:
            inputs = keras.Input((None, None, 8))
            self.body = keras.Model(inputs, self.body(inputs))

    @property
    def squeeze(self):
        return (self.body.layers[1] if self.functional else self.body).layers[0]

    def build(self, shape) -> None:
        if not self.functional:
            self.body.build(shape)

    def call(self, x):
        return x * self.body(x)

    def get_config(self):
        return {**super().get_config(), "functional": self.functional}


KINDS = {
    "named": partial(Gate, True),
    "numbered": partial(Gate, False),
    "composite": Composite,
    "sequential": partial(Stacked, False),
    "functional": partial(Stacked, True),
}


def gated(kind: str) -> keras.Model:
    inputs = x = keras.Input((None, None, 3))
    for number in range(4):
        convolution = keras.layers.Conv2D(8, 3, 2, "same", name=f"conv{number}")
        x = KINDS[kind](name=f"gate{number}")(convolution(x))
    return keras.Model(inputs, x)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frozen", ["network", "layer", "part", "backbone"])
def test_frozen_layers_of_a_users_layers_stay_frozen(tmp_path, kind, frozen):
    network = gated(kind)
    if frozen != "backbone":
        gate = network.get_layer("gate0")
        {"network": network, "layer": gate, "part": gate.squeeze}[frozen].trainable = False
    model = small(DeepLabV3, network, output_stride=16, head_filters=None)
    if frozen == "backbone":
        model.backbone.trainable = False
    size = 10 if kind in ("named", "numbered") else 8
    expected = {"network": 0, "layer": 3 * size + 2, "part": 4 * size - 2, "backbone": 0}[frozen]
    model.save(tmp_path / "model.keras")
    for made in (
        model,
        model.with_num_classes(5),
        model.with_output_stride(8),
        keras.models.load_model(tmp_path / "model.keras"),
    ):
        assert len(made.backbone.trainable_weights) == expected


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_a_users_layers_come_back(tmp_path, kind):
    model = small(DeepLabV3, gated(kind), output_stride=16, head_filters=None)
    random = np.random.default_rng(0)
    for weight in model.backbone.weights:
        weight.assign(random.uniform(0.5, 1, weight.shape))
    model.save(tmp_path / "model.keras")
    made = weights.from_pretrained(tmp_path / "model.keras", num_classes=4)
    assert made.transfer_report.missing_keys == ("logits",)
    twin = small(DeepLabV3, gated(kind), output_stride=16, head_filters=None)
    assert weights.load(twin, tmp_path / "model.keras").missing_keys == ()
    for other in (made, twin, model.with_num_classes(4), model.with_dtype("float32")):
        for old, new in zip(model.backbone.weights, other.backbone.weights, strict=True):
            np.testing.assert_array_equal(old, new)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, policy", [("sequential", "float32"), ("composite", "mixed_bfloat16")]
)
def test_a_users_layers_keep_their_precision(kind, policy, tmp_path):
    """In a model of another one, in a file, and in copies, whatever the policy that is set."""
    keras.config.set_dtype_policy(policy)
    try:
        network = gated(kind)
    finally:
        keras.config.set_dtype_policy("float32")
    model = small(DeepLabV3, network, output_stride=16, dtype="mixed_bfloat16")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for made in (model, loaded, model.with_num_classes(4), model.with_dtype("float32")):
        assert made.backbone.get_layer("gate1").squeeze.dtype_policy.name == policy
        assert made(image(33, 48)).shape[:3] == (1, 33, 48)


@keras.saving.register_keras_serializable("test_user_backbone")
class WithGate(DeepLabV3Plus):
    """A subclass with a layer of its own after the head."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")
        self.gate = keras.layers.Conv2D(self.num_classes, 1)
        self.gate.build((None, None, None, self.num_classes))

    def call(self, x, training=None, mask=None):
        return self.gate(super().call(x, training=training, mask=mask)) * self.scale


@pytest.mark.slow
def test_layers_that_a_subclass_adds_are_copied(logs):
    model = calibrate(small(WithGate, tiny()), image(64, 64, batch=2))
    model.scale.assign(3)
    x = image(64, 64)
    for changed in (model.with_output_stride(model.output_stride), model.with_dtype("float32")):
        np.testing.assert_allclose(changed(x), model(x), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(model.with_output_stride(8).gate.kernel, model.gate.kernel)
    model.with_num_classes(4)
    number = list(all_layers(model).values()).index(model.gate)
    missing = logs.text.rsplit("missing keys: ", 1)[1].split("\n")[0]
    assert missing == f"logits, {list(all_layers(model))[number]}"


@pytest.mark.slow
def test_weights_are_copied_not_shared_and_the_users_network_is_not_modified():
    network = calibrate(tiny(), image(64, 64, batch=2))
    x = image(70, 70)

    def state():
        trainable = [layer.trainable for layer in leaf_layers(network).values()]
        nodes = [len(layer._inbound_nodes) for layer in leaf_layers(network).values()]
        config = json.dumps(keras.saving.serialize_keras_object(network), sort_keys=True)
        return config, network.get_weights(), network(x).numpy(), trainable, nodes

    before = state()
    model = small(DeepLabV3Plus, network)
    copied = leaf_layers(model.backbone)
    for name, layer in leaf_layers(network).items():
        for mine, its in zip(
            copied[name].weights if layer.weights else [], layer.weights, strict=True
        ):
            assert mine is not its
            np.testing.assert_array_equal(mine, its)
    total = sum(layer.count_params() for layer in model.layers)
    assert model.count_params() == total  # the user's network is not held beside its copy
    model.trainable = False
    for weight in model.weights:
        weight.assign(weight * 0 + 3)
    model.with_output_stride(8)
    for old, new in zip(before, state(), strict=True):
        keras.tree.map_structure(np.testing.assert_array_equal, old, new)


@pytest.mark.slow
def test_copies_normalise_as_the_adapted_layer_does(tmp_path: Path):
    """Keras' layer computes with constants made of its weights, not with the weights."""
    normalization = keras.layers.Normalization(name="normalization")
    normalization.adapt(np.random.default_rng(0).normal([90, 100, 110], 50, (1000, 1, 1, 3)))
    inputs = keras.Input((None, None, 3))
    network = keras.Model(inputs, tiny_sequential()(normalization(inputs)))
    x = image(64, 64)
    calibrate(network, image(64, 64, batch=2))
    model, fresh = (small(DeepLabV3, network, head_filters=None) for _ in range(2))
    expected = with_output_stride(network, model.output_stride)(x)
    inside = leaf_layers(fresh)["backbone/normalization"]
    inside.set_weights([weight * 0 + 1 for weight in inside.get_weights()])
    inside.finalize_state()
    assert np.std(fresh.backbone(x) - model.backbone(x)) > 1e-2
    model.save(tmp_path / "model.keras")
    weights.load(fresh, tmp_path / "model.keras")
    copies = [fresh, model.with_num_classes(4), model.with_dtype("float32")]
    for copy in [model, *copies, keras.models.load_model(tmp_path / "model.keras")]:
        np.testing.assert_allclose(copy.backbone(x), expected, atol=1e-3 * np.std(expected))


@pytest.mark.slow
def test_changing_a_model_twice(tmp_path: Path):
    """The configuration of a user's network is not used up by the first change."""
    network = of_one_size()
    network.compile("adam", loss=lambda truth, prediction: prediction)  # left behind
    model = small(DeepLabV3, network, head_filters=None)
    assert not model.compiled
    assert "compile_config" not in model.get_config()["backbone"]
    config = json.dumps(model.get_config())
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.with_num_classes(4).num_classes == 4
    fine = loaded.with_output_stride(8)
    assert json.dumps(loaded.get_config()) == config
    fine.save(tmp_path / "again.keras")
    again, x = keras.models.load_model(tmp_path / "again.keras"), image(33, 47)
    assert again.output_stride == 8
    np.testing.assert_allclose(again(x), fine(x), rtol=1e-5, atol=1e-5)


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
        (lambda: with_layer(doubler()), r"'own'.*doubler' \(Lambda\): write it as a layer class"),
        (lambda: with_layer(with_layer(doubler(), 4, 1)), r"'own'.*doubler' \(Lambda\)"),
        (lambda: with_layer(Unsavable(object(), name="stubborn")), r"'stubborn' \(Unsavable\)"),
        (lambda: with_layer(keras.layers.Flatten()), r"one feature map.*'own'.*\(None, None\)"),
        (lambda: keras.Sequential([keras.layers.Conv2D(3, 3)], name="raw"), "name=raw"),
        (two_inputs, "one feature map.*'twin'"),
    ],
)
def test_networks_that_cannot_be_backbones(network, words):
    with pytest.raises(ValueError, match=f"`backbone` must be .*{words}"):
        small(DeepLabV3, network())
