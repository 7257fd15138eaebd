"""Which variables of a model are in the groups that are read from its layers."""

from __future__ import annotations

import keras
import pytest
from keras import layers as kl
from models.networks import tiny

import keras_deeplab
from keras_deeplab.optimizers import backbone, classifier, no_decay
from keras_deeplab.optimizers.groups import multipliers


def found(model: keras.Model, groups) -> dict[str, tuple[float, float]]:
    """The multipliers of each path that has some."""
    variables = model.trainable_variables
    pairs = zip(variables, multipliers(groups, variables), strict=True)
    return {variable.path: pair for variable, pair in pairs if pair != (1.0, 1.0)}


def of_all_kinds() -> keras.Model:
    inputs = keras.Input((8, 8, 6))
    x = kl.DepthwiseConv2D(3, name="dw")(inputs)
    x = kl.SeparableConv2D(6, 3, use_bias=False, name="separable")(x)
    x = kl.Conv2D(6, 1, groups=6, use_bias=False, name="one_each")(x)
    x = kl.Conv2D(6, 1, groups=3, use_bias=False, name="two_each")(x)
    x = kl.BatchNormalization(name="batch")(x)
    x = kl.GroupNormalization(3, scale=False, name="group")(x)
    x = keras.Sequential([kl.LayerNormalization(name="layer"), kl.PReLU(name="act")], name="in")(x)
    x = kl.RMSNormalization(name="rms")(x)
    x = kl.Reshape((16, 6))(x)
    x = kl.MultiHeadAttention(1, 2, name="mha")(x, x)
    x = kl.Bidirectional(kl.LSTM(2, name="lstm"), name="two")(x)
    return keras.Model(inputs, kl.Dense(2, name="biased_kernel")(x))


DECAYED = {
    "separable/pointwise_kernel",
    "two_each/kernel",
    "in/act/alpha",
    "mha/query/kernel",
    "mha/key/kernel",
    "mha/value/kernel",
    "mha/attention_output/kernel",
    "two/forward_lstm/lstm_cell/kernel",
    "two/forward_lstm/lstm_cell/recurrent_kernel",
    "two/backward_lstm/lstm_cell/kernel",
    "two/backward_lstm/lstm_cell/recurrent_kernel",
    "biased_kernel/kernel",
}


def test_kernels_decay_and_nothing_else():
    model = of_all_kinds()
    without = found(model, no_decay(model))
    assert {v.path for v in model.trainable_variables} - set(without) == DECAYED
    assert set(without.values()) == {(1.0, 0.0)}


def test_no_decay_outlasts_freezing_and_thawing():
    model = of_all_kinds()
    model.get_layer("batch").trainable = False
    groups = no_decay(model)
    assert "batch/gamma" not in found(model, groups)
    model.get_layer("batch").trainable = True
    model.get_layer("mha").trainable = False
    assert found(model, groups)["batch/gamma"] == (1.0, 0.0)


def test_paths_with_wildcards_in_them_are_meant_as_they_are():
    inputs = keras.Input((2,))
    x = kl.Dense(2, use_bias=False, name="a[1]*")(kl.Dense(2, use_bias=False, name="a1")(inputs))
    model = keras.Model(inputs, x)
    assert found(model, classifier(model)) == {"a[1]*/kernel": (10.0, 1.0)}
    assert no_decay(model) == [], "no bias, no group"


def test_a_model_without_weights():
    with pytest.raises(ValueError, match="`model` must be a built model .* model='new'"):
        no_decay(keras.Sequential([kl.Dense(2)], name="new"))
    inputs = keras.Input((2,))
    empty = keras.Model(inputs, kl.ReLU()(inputs), name="empty")
    with pytest.raises(ValueError, match="with a layer that has weights. Received: model='empty'"):
        classifier(empty)
    with pytest.raises(ValueError, match="or a built keras.Sequential"):
        classifier(keras.Sequential([kl.Dense(2)]))
    with pytest.raises(ValueError, match="must be a functional Keras model"):
        classifier(keras.Model())


def with_auxiliary_head() -> keras.Model:
    return keras_deeplab.DeepLabV3(3, tiny(), output_stride=16, auxiliary_layer="stage8_out")


V2 = {f"logits_{index}" for index in range(4)}
# The auxiliary head's predictor has the main one's path.
PREDICTORS = {
    "V2": (lambda: keras_deeplab.DeepLabV2(3, tiny()), V2, 8),
    "V3 at scales": (lambda: keras_deeplab.MultiScale(with_auxiliary_head()), {"logits"}, 4),
    "V3+": (lambda: keras_deeplab.DeepLabV3Plus(3, tiny(), separable=True), {"logits"}, 2),
    "U-Net": (lambda: keras_deeplab.UNet(3, tiny()), {"logits"}, 2),
    "Sequential": (
        lambda: keras.Sequential(
            [keras.Input((4,)), kl.Dense(4), kl.Dense(2, name="last"), kl.Softmax()], name="plain"
        ),
        {"plain/last"},
        2,
    ),
}


@pytest.mark.parametrize("model", PREDICTORS)
def test_groups_of_models(model):
    make, layers, count = PREDICTORS[model]
    model = make()
    expected = {f"{layer}/kernel": (7.0, 1.0) for layer in layers}
    expected |= {f"{layer}/bias": (11.0, 1.0) for layer in layers}
    groups = classifier(model, lr_multiplier=7, bias_lr_multiplier=11)
    assert found(model, groups) == expected
    variables = model.trainable_variables
    assert sum(pair != (1, 1) for pair in multipliers(groups, variables)) == count
    decayed = {v.path for v in variables} - set(found(model, no_decay(model)))
    assert decayed
    assert all(path.endswith("/kernel") and "depthwise" not in path for path in decayed)


def test_a_predictor_of_several_parts():
    inputs = keras.Input((8, 8, 3))
    x = kl.Conv2D(4, 1, name="before")(inputs)
    last = keras_deeplab.layers.AtrousSeparableConv2D(2, 3, batch_norm=False, name="last")
    model = keras.Model(inputs, last(x))
    parts = {"kernel": (10.0, 1.0), "bias": (20.0, 1.0)}
    layers = ("last/depthwise", "last/pointwise")
    expected = {f"{layer}/{name}": pair for layer in layers for name, pair in parts.items()}
    assert found(model, classifier(model)) == expected


@pytest.mark.parametrize("make", [no_decay, classifier])
def test_one_path_of_two_variables_is_an_error(make):
    inner = keras.Input((4, 4, 2))
    network = keras.Model(inner, kl.DepthwiseConv2D(3, padding="same", name="logits")(inner))
    inputs = keras.Input((4, 4, 2))
    model = keras.Model(inputs, kl.Conv2D(2, 1, name="logits")(network(inputs)), name="twins")
    rule = "single variable 'logits/kernel'. Received: model='twins'"
    with pytest.raises(ValueError, match=rule):
        make(model)


def test_the_backbone_learns_at_its_own_rate():
    model = keras_deeplab.DeepLabV3(3, tiny(), aspp_filters=4, aspp_rates=(2,), head_filters=4)
    of_backbone = {variable.path for variable in model.backbone.trainable_variables}
    of_head = {variable.path for variable in model.trainable_variables} - of_backbone
    assert len(of_backbone) > 5
    assert len(of_head) > 5
    expected = dict.fromkeys(of_backbone, (0.25, 1.0))
    assert found(model, backbone(model, 0.25)) == expected
    several = keras_deeplab.MultiScale(model, (0.5, 1.0))
    assert found(several, backbone(several, 0.25)) == expected
    model.backbone.trainable = False
    assert backbone(model) == []
    with pytest.raises(ValueError, match="layer named backbone. Received: model='plain'"):
        backbone(keras.Sequential([kl.Input((8, 3)), kl.Dense(2)], name="plain"))


@pytest.mark.parametrize("name", ["lr_multiplier", "bias_lr_multiplier"])
def test_multipliers_are_checked(name):
    with pytest.raises(ValueError, match=f"`{name}` must be a non-negative number"):
        classifier(of_all_kinds(), **{name: -1})
