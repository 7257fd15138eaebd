from __future__ import annotations

import inspect

import keras
import numpy as np
import pytest
from networks import SMALL, small, tiny

from keras_deeplab import DeepLabV1, DeepLabV2, DeepLabV3, DeepLabV3Plus, SPPNet, UNet, backbones
from keras_deeplab.backbones.resnet import UNITS
from keras_deeplab.graph.network import all_layers
from keras_deeplab.layers import ResizeLike
from keras_deeplab.models.deeplab_v1 import with_released_vgg16


def without_stride_4() -> keras.Model:
    inputs = keras.Input((None, None, 3))
    return keras.Model(inputs, keras.layers.Conv2D(4, 16, strides=16)(inputs), name="flat")


def pooled_to_one() -> keras.Model:
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 3, strides=2, padding="same", name="a")(inputs)
    x = keras.layers.GlobalAveragePooling2D(keepdims=True, name="mean")(x)
    return keras.Model(inputs, keras.layers.ReLU()(x), name="single")


TINY = tiny()


def received(name: str, value: str) -> str:
    return f"`{name}` .* Received: {name}={value}"


# Checked for all models in one place, so that one model is enough for most.
CASES = [
    (DeepLabV3, {"num_classes": 1}, "`num_classes` .* Received: num_classes=1.*use 2"),
    (UNet, {"num_classes": 2.0}, received("num_classes", "2.0")),
    (DeepLabV3Plus, {"output_stride": 3}, r"`output_stride` must be one of .*\[1, .*16.*\D3"),
    (DeepLabV3, {"aspp_rates": (6, 0)}, received("aspp_rates", r"\(6, 0\)")),
    (DeepLabV3, {"multi_grid": (1, 2, 4)}, r"`multi_grid` .*'tiny'.* multi_grid=\(1, 2, 4\)"),
    (DeepLabV3Plus, {"stride_on": "1x1"}, "`stride_on` .*'tiny'.* Received: stride_on='1x1'"),
    (SPPNet, {"backbone_options": {"padding": "same"}}, "`padding` .*'tiny'.*padding='same'"),
    (DeepLabV3, {"backbone_options": ["padding"]}, r"`backbone_options` must be a dict"),
    (DeepLabV3, {"dropout": 1.0}, received("dropout", "1.0")),
    (DeepLabV3, {"epsilon": 0}, received("epsilon", "0")),
    (DeepLabV3, {"preprocessing": "bgr"}, received("preprocessing", "'bgr'")),
    (UNet, {"input_shape": (None, None)}, received("input_shape", r"\(None, None\)")),
    (SPPNet, {"input_shape": (0, None, 3)}, received("input_shape", r"\(0, None, 3\)")),
    (DeepLabV3, {"input_shape": (None, None, 4)}, r"`backbone` .* 4 channels of .*None, 3\)"),
    (DeepLabV3, {"dtype": "float31"}, received("dtype", "'float31'")),
    (DeepLabV3, {"activation": "softmax"}, "`activation` must be .*hidden.*'softmax'.*logits"),
    (UNet, {"activation": keras.activations.softmax}, "`activation` must be .*hidden.*logits"),
    (DeepLabV3, {"activation": "reloo"}, received("activation", "'reloo'")),
    (DeepLabV3, {"backbone": "vgg19"}, received("backbone", "'vgg19'")),
    (DeepLabV3, {"backbone": None}, received("backbone", "None")),
    (DeepLabV3, {"backbone": pooled_to_one()}, "`backbone` must be .* is a map.*single"),
    (DeepLabV3, {"auxiliary_layer": "auto"}, "`auxiliary_layer` .*'tiny'.*'auto'"),
    (DeepLabV3, {"auxiliary_layer": "stage17_out"}, "`auxiliary_layer` .*17_out.*stage16_out"),
    (DeepLabV3, {"auxiliary_layer": 3}, "`auxiliary_layer` .*'tiny'.* auxiliary_layer=3"),
    (DeepLabV3, {"auxiliary_weight": -0.4}, received("auxiliary_weight", "-0.4")),
    (DeepLabV3Plus, {"low_level_layer": "stage4_oot"}, "`low_level_layer` .*oot.*stage4_out"),
    (DeepLabV3Plus, {"decoder_filters": None}, received("decoder_filters", "None")),
    (DeepLabV3Plus, {"detail_layer": "stage4_oot"}, "`detail_layer` .*stage4_oot.*stage4_out"),
    (DeepLabV3Plus, {"backbone": without_stride_4()}, "`stride` must be one of .* stride=4"),
    (UNet, {"filters": 2.5}, received("filters", "2.5")),
    (UNet, {"backbone": 3}, received("backbone", "3")),
    (UNet, {"backbone": without_stride_4()}, r"`skip_layers` .* 16.* skip_layers=\(\)"),
    (UNet, {"skip_layers": "stem"}, received("skip_layers", "'stem'")),
    (UNet, {"skip_layers": ("stm",)}, "`skip_layers` .*'stm'.*stem"),
    (UNet, {"skip_layers": ("add8", "stage8")}, r"`skip_layers` .* different .*add8', 'stage8"),
    (UNet, {"skip_layers": ("stem", "stage32")}, "`skip_layers` .* finer than .* 32.*'stage32'"),
    (UNet, {"backbone": None, "skip_layers": ("level0_conv2",)}, "`skip_layers` .* finer than"),
    (SPPNet, {"levels": ()}, received("levels", r"\(\)")),
    (SPPNet, {"dense": 256}, received("dense", "256")),
    (SPPNet, {"pooling": "mean"}, received("pooling", "'mean'")),
]


@pytest.mark.parametrize("cls, arguments, words", CASES)
def test_errors_name_argument_and_value(cls, arguments, words):
    with pytest.raises(ValueError, match=words):
        cls(**{"num_classes": 3, "backbone": TINY, **arguments})


@pytest.mark.parametrize("cls", dict.fromkeys(cls for cls, _ in SMALL.values()))
def test_every_argument_that_is_an_integer_is_checked(cls):
    parameters = inspect.signature(cls).parameters.values()
    names = [p.name for p in parameters if type(p.default) is int or p.name == "head_filters"]
    assert "num_classes" in names
    for name in names:
        with pytest.raises(ValueError, match=received(name, "0")):
            cls(**{"backbone": TINY, name: 0})


CASCADE = {"cascade": True}
GRID = {"backbone_options": {"multi_grid": (1, 1, 1)}}


@pytest.mark.parametrize(
    "cls, backbone, arguments, words",
    [
        (DeepLabV1, "vgg16", {"aspp_rates": (6, 12)}, r"`aspp_rates` .* one rate.*\(6, 12\)"),
        (DeepLabV1, "vgg16", {"head_filters": None}, received("head_filters", "None")),
        (DeepLabV2, "vgg16", {"aspp_rates": ()}, r"`aspp_rates` .* at least one .*=\(\)"),
        (DeepLabV3, "mobilenet_v2", {"stride_on": "3x3"}, "`stride_on` .*'mobilenet_v2'.*'3x3'"),
        (DeepLabV3, "resnet50", GRID, "without 'multi_grid'.* is an argument"),
        (DeepLabV3, "resnet50", {**CASCADE, "aspp_rates": (6,)}, r"`aspp_rates` .* left out"),
        (DeepLabV3, "resnet50", {**CASCADE, "separable": True}, "`separable` .* left out"),
    ],
)
def test_errors_that_come_before_the_backbone_is_built(
    cls, backbone, arguments, words, monkeypatch
):
    monkeypatch.setattr(backbones, "build", lambda *_, **__: pytest.fail("it is built"))
    with pytest.raises(ValueError, match=words):
        cls(3, backbone, **arguments)


@pytest.mark.parametrize("name, value", [("stride_on", "2x2"), ("multi_grid", ())])
def test_errors_of_the_backbones_options(name, value):
    with pytest.raises(ValueError, match=f"`{name}` .* Received: {name}="):
        DeepLabV3(3, "resnet50", **{name: value})


@pytest.mark.parametrize(
    "cls, coarse, scaled",
    [
        (DeepLabV1, 64, "1.5,"),
        (DeepLabV2, 32, "1.5, 3.0, 4.5, 6.0"),
        (DeepLabV3, 64, "1.5, 3.0, 4.5"),
    ],
)
def test_rates_that_do_not_scale_to_integers_must_be_given(cls, coarse, scaled):
    message = rf"`output_stride` .*={coarse}\. They would be \({scaled}.*Give `aspp_rates`"
    with pytest.raises(ValueError, match=message):
        cls(3, TINY, output_stride=coarse)


def test_a_new_model_and_a_changed_one_have_the_same_rule_for_rates():
    fine = DeepLabV2(3, tiny(), output_stride=16).with_output_stride(8)
    assert fine.get_config()["aspp_rates"] == (6, 12, 18, 24)
    given = DeepLabV2(3, tiny(), output_stride=32, aspp_rates=(1, 3, 4, 6))
    assert [given.get_layer(f"logits_{i}").dilation_rate[0] for i in range(4)] == [1, 3, 4, 6]


def test_where_a_model_has_no_such_argument_the_options_hold_it(monkeypatch):
    monkeypatch.setitem(UNITS, 50, (1, 1, 1, 3))
    options = {"stride_on": "1x1"}
    model = DeepLabV1(3, "resnet50", backbone_options=options, head_filters=4)
    assert model.get_config()["backbone_options"]["stride_on"] == "1x1"


@pytest.mark.slow
def test_arguments_reach_the_layers():
    model = DeepLabV3Plus(
        np.int64(3),
        tiny(),
        output_stride=8,
        aspp_rates=(2, 5),
        low_level_layer="stem",
        separable=True,
        aspp_filters=6,
        decoder_filters=10,
        low_level_filters=7,
        dropout=0.25,
        activation="swish",
        name="mine",
    )
    assert type(model.get_config()["num_classes"]) is int
    aspp = model.get_layer("aspp").get_config()
    assert (aspp["rates"], aspp["filters"], aspp["separable"]) == (((2, 2), (5, 5)), 6, True)
    assert (aspp["dropout"], aspp["activation"]) == (0.25, "silu")
    assert model.get_layer("decoder_low_level").filters == 7
    last = model.get_layer("decoder_1").get_config()
    assert type(model.get_layer("decoder_1")).__name__ == "AtrousSeparableConv2D"
    assert (last["filters"], last["activation"]) == (10, "silu")
    assert model.name == "mine"
    assert type(model).from_config(model.get_config()).get_config() == model.get_config()


@pytest.mark.slow
def test_head_of_v3():
    plain = small("v3", head_filters=256).get_layer("head")
    assert (type(plain).__name__, plain.filters) == ("AtrousConv2D", 256)
    separable = small("v3", separable=True)
    assert type(separable.get_layer("head")).__name__ == "AtrousSeparableConv2D"
    assert "head" not in {layer.name for layer in small("v3", head_filters=None).layers}


def of_the_head(model, kind, name):
    """What the layers of a kind have, but for those of the backbone and the broadcast of a mean."""
    return {
        getattr(layer, name)
        for path, layer in all_layers(model).items()
        if isinstance(layer, kind) and not path.startswith("backbone") and "broadcast" not in path
    }


@pytest.mark.parametrize(
    "name, dropout, is_normed, corners",
    [
        ("v1", {0.5}, False, True),
        ("v2_branches", {0.5}, False, True),
        ("v3_auxiliary", {0.1}, True, False),
        ("v3_detail", {0.1}, True, False),
    ],
)
def test_heads_have_the_settings_of_the_papers_or_those_given(name, dropout, is_normed, corners):
    model = small(name)
    assert of_the_head(model, keras.layers.Dropout, "rate") == dropout
    assert of_the_head(model, ResizeLike, "align_corners") == {corners}
    for setting, value in (("epsilon", 1e-5), ("momentum", 0.9)):
        found = of_the_head(model, keras.layers.BatchNormalization, setting)
        assert found == ({value} if is_normed else set())
    given = {"dropout": 0.25, "align_corners": not corners}
    given |= {"epsilon": 0.5, "activation": "swish"} if is_normed else {}
    model = small(name, **given)
    auxiliary = {0.1} if name == "v3_auxiliary" else set()  # torchvision's
    assert of_the_head(model, keras.layers.Dropout, "rate") == {0.25, *auxiliary}
    assert of_the_head(model, ResizeLike, "align_corners") == {not corners}
    if is_normed:
        assert of_the_head(model, keras.layers.BatchNormalization, "epsilon") == {0.5}
        activations = of_the_head(model, keras.layers.Activation, "activation")
        assert activations == {keras.activations.silu}


def test_kernels_of_heads_begin_with_the_spreads_of_the_papers():
    keras.utils.set_random_seed(0)
    v1, v3 = small("v1", head_filters=64), small("v3_auxiliary")
    assert np.std(v1.get_layer("logits").kernel) == pytest.approx(0.01, rel=0.2)
    for kernel in (v1.get_layer("fc6").kernel, all_layers(v3)["auxiliary/conv"].kernel):
        expected = np.sqrt(2 / np.prod(kernel.shape[:3]))
        assert np.std(kernel) == pytest.approx(expected, rel=0.05)


def test_the_layers_of_a_detail_stage():
    model = small("v3_detail", low_level_filters=10)
    assert model.get_layer("decoder_low_level").filters == 10
    assert model.get_layer("detail_low_level").filters == 5
    assert model.get_layer("detail_1").filters == 6


def test_vgg16_is_the_released_one_unless_told_otherwise():
    for given, expected in (({}, 3), ({"pool_size": 2}, 2)):
        arguments = {"backbone": "vgg16", "backbone_options": given}
        found = with_released_vgg16(arguments)["backbone_options"]
        assert found == {"atrous": True, "pool_size": expected}
    arguments = {"backbone": "resnet50", "backbone_options": {"padding": "same"}}
    assert with_released_vgg16(arguments) == arguments


DEFAULTS = {
    DeepLabV1: {"backbone": "vgg16", "output_stride": 8, "head_filters": 1024},
    DeepLabV2: {"backbone": "resnet101", "output_stride": 8, "head_filters": "auto"},
    DeepLabV3: {"output_stride": 16, "aspp_filters": 256, "head_filters": 256, "cascade": False},
    DeepLabV3Plus: {"output_stride": 16, "low_level_filters": 48, "decoder_filters": 256},
    UNet: {"backbone": None, "depth": 4, "dropout": 0.5},
    SPPNet: {"levels": (6, 3, 2, 1), "dense": (4096, 4096), "dropout": 0.5, "pooling": "max"},
}


@pytest.mark.parametrize("cls", DEFAULTS)
def test_defaults_of_the_papers(cls):
    parameters = inspect.signature(cls).parameters
    assert {name: parameters[name].default for name in DEFAULTS[cls]} == DEFAULTS[cls]
