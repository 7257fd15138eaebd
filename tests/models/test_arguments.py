from __future__ import annotations

import math

import keras
import numpy as np
import pytest
from networks import tiny

from keras_deeplab import DeepLabV1, DeepLabV2, DeepLabV3, DeepLabV3Plus, UNet, backbones


@pytest.mark.parametrize("cls", [DeepLabV3, DeepLabV3Plus])
@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"num_classes": 1}, "`num_classes` .* Received: num_classes=1.*use 2"),
        ({"num_classes": 2.0}, "`num_classes` .* Received: num_classes=2.0"),
        ({"num_classes": True}, "`num_classes` .* Received: num_classes=True"),
        ({"output_stride": 0}, "`output_stride` .* Received: output_stride=0"),
        ({"output_stride": "16"}, "`output_stride` .* Received: output_stride='16'"),
        (
            {"output_stride": 3},
            r"`output_stride` must be one of .*\[1, .*16.*\D3",
        ),
        (
            {"output_stride": 64, "aspp_rates": (2,)},
            r"`output_stride` must be one of .*\[1, .*16.*\D64",
        ),
        ({"aspp_rates": 6}, "`aspp_rates` .* Received: aspp_rates=6"),
        ({"aspp_rates": (6, 0)}, r"`aspp_rates` .* Received: aspp_rates=\(6, 0\)"),
        ({"multi_grid": (1, 2, 4)}, r"`multi_grid` .*'tiny'.* Received: multi_grid=\(1, 2, 4\)"),
        ({"stride_on": "1x1"}, "`stride_on` .*'tiny'.* Received: stride_on='1x1'"),
        ({"aspp_filters": 0}, "`aspp_filters` .* Received: aspp_filters=0"),
        ({"dropout": 1.0}, "`dropout` .* Received: dropout=1.0"),
        ({"epsilon": 0}, "`epsilon` .* Received: epsilon=0"),
        ({"epsilon": -1e-5}, "`epsilon` .* Received: epsilon=-1e-05"),
        ({"epsilon": math.nan}, "`epsilon` .* Received: epsilon=nan"),
        ({"epsilon": math.inf}, "`epsilon` .* Received: epsilon=inf"),
        ({"epsilon": True}, "`epsilon` .* Received: epsilon=True"),
        ({"epsilon": "1e-5"}, "`epsilon` .* Received: epsilon='1e-5'"),
        ({"preprocessing": "bgr"}, "`preprocessing` .* Received: preprocessing='bgr'"),
        ({"input_shape": (None, None)}, r"`input_shape` .* Received: input_shape=\(None, None\)"),
        ({"input_shape": 3}, "`input_shape` .* Received: input_shape=3"),
        ({"input_shape": (0, None, 3)}, r"`input_shape` .* Received: input_shape=\(0, None, 3\)"),
        ({"input_shape": (None, None, 4)}, "`backbone` .* 4 channels of `input_shape`.* takes 3"),
        ({"dtype": "float31"}, "`dtype` .* Received: dtype='float31'"),
        ({"activation": "reloo"}, "`activation` .* Received: activation='reloo'"),
    ],
)
def test_errors_name_argument_and_value(cls, arguments, words):
    with pytest.raises(ValueError, match=words):
        cls(**{"num_classes": 3, "backbone": tiny(), **arguments})


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"low_level_layer": "stage4_oot"}, "`low_level_layer` .*stage4_oot.*stage4_out"),
        ({"low_level_filters": -1}, "`low_level_filters` .* Received: low_level_filters=-1"),
        ({"decoder_filters": None}, "`decoder_filters` .* Received: decoder_filters=None"),
    ],
)
def test_errors_of_the_decoder(arguments, words):
    with pytest.raises(ValueError, match=words):
        DeepLabV3Plus(3, tiny(), **arguments)


def test_errors_of_the_others():
    with pytest.raises(ValueError, match="`head_filters` .* Received: head_filters=0"):
        DeepLabV3(3, tiny(), head_filters=0)
    with pytest.raises(ValueError, match="`stride_on` .* Received: stride_on='2x2'"):
        DeepLabV3(3, "resnet50", stride_on="2x2")
    with pytest.raises(ValueError, match=r"`multi_grid` .* Received: multi_grid=\(\)"):
        DeepLabV3(3, "resnet50", multi_grid=())
    with pytest.raises(ValueError, match="`stride_on` .*'mobilenet_v2'.*'3x3'"):
        DeepLabV3(3, "mobilenet_v2", stride_on="3x3")
    inputs = keras.Input((None, None, 3))
    network = keras.Model(inputs, keras.layers.Conv2D(4, 16, strides=16)(inputs))
    with pytest.raises(ValueError, match="`stride` must be one of .* Received: stride=4"):
        DeepLabV3Plus(3, network)


@pytest.mark.parametrize(
    "cls, arguments, words",
    [
        (DeepLabV1, {"aspp_rates": (6, 12)}, r"`aspp_rates` .* one rate.*aspp_rates=\(6, 12\)"),
        (DeepLabV1, {"aspp_rates": ()}, r"`aspp_rates` .* one rate. Received: aspp_rates=\(\)"),
        (DeepLabV1, {"head_filters": None}, "`head_filters` .*head_filters=None"),
        (DeepLabV2, {"aspp_rates": ()}, r"`aspp_rates` .* at least one .*aspp_rates=\(\)"),
        (DeepLabV2, {"head_filters": 0}, "`head_filters` .* Received: head_filters=0"),
    ],
)
def test_errors_of_the_first_two_come_before_the_backbone_is_built(
    cls, arguments, words, monkeypatch
):
    monkeypatch.setattr(backbones, "build", lambda *_, **__: pytest.fail("it is built"))
    with pytest.raises(ValueError, match=words):
        cls(3, "vgg16", **arguments)


@pytest.mark.parametrize(
    "cls, coarse, scaled",
    [
        (DeepLabV1, 64, "1.5,"),
        (DeepLabV2, 32, "1.5, 3.0, 4.5, 6.0"),
        (DeepLabV3, 64, "1.5, 3.0, 4.5"),
        (DeepLabV3Plus, 64, "1.5, 3.0, 4.5"),
    ],
)
def test_rates_that_do_not_scale_to_integers_must_be_given(cls, coarse, scaled):
    message = rf"`output_stride` .*={coarse}\. They would be \({scaled}.*Give `aspp_rates`"
    with pytest.raises(ValueError, match=message):
        cls(3, tiny(), output_stride=coarse)


def test_a_new_model_and_a_changed_one_have_the_same_rule_for_rates():
    model = DeepLabV2(3, tiny(), output_stride=16)
    assert model.get_config()["aspp_rates"] == (3, 6, 9, 12)
    fine = model.with_output_stride(8)
    assert fine.get_config()["aspp_rates"] == DeepLabV2(3, tiny()).get_config()["aspp_rates"]
    with pytest.raises(ValueError, match="Give `aspp_rates`") as changed:
        fine.with_output_stride(32)
    with pytest.raises(ValueError, match="Give `aspp_rates`") as new:
        DeepLabV2(3, tiny(), output_stride=32)
    assert str(changed.value) == str(new.value)
    given = DeepLabV2(3, tiny(), output_stride=32, aspp_rates=(1, 3, 4, 6))
    assert [given.get_layer(f"logits_{i}").dilation_rate[0] for i in range(4)] == [1, 3, 4, 6]


def test_no_argument_is_passed_over():
    for options, key in (
        ({"multi_grid": (1, 1, 1)}, "multi_grid"),
        ({"stride_on": "1x1"}, "stride_on"),
    ):
        with pytest.raises(ValueError, match=f"without '{key}'.* is an argument"):
            DeepLabV3(3, "resnet50", backbone_options=options)
    # V1 has no such argument: there the options hold it.
    model = DeepLabV1(3, "resnet50", backbone_options={"stride_on": "1x1"}, head_filters=4)
    assert model.get_config()["backbone_options"]["stride_on"] == "1x1"
    with pytest.raises(
        ValueError,
        match=r"`backbone_options` must be a dict.*backbone_options=\['padding'\]",
    ):
        DeepLabV3(3, "mobilenet_v2", backbone_options=["padding"])
    with pytest.raises(ValueError, match=r"`aspp_rates` must be left out .* aspp_rates=\(6, 12\)"):
        DeepLabV3(3, "resnet50", cascade=True, aspp_rates=(6, 12))
    with pytest.raises(ValueError, match="`separable` must be left out .* separable=True"):
        DeepLabV3(3, "resnet50", cascade=True, separable=True)
    for cls in (DeepLabV1, DeepLabV2, UNet):
        with pytest.raises(ValueError, match="`dropout` must be .* Received: dropout=2"):
            cls(3, tiny(), dropout=2)


def test_numpy_numbers_of_classes():
    model = DeepLabV3(np.int64(3), tiny(), aspp_filters=4)
    assert type(model.get_config()["num_classes"]) is int


def test_arguments_reach_the_layers():
    model = DeepLabV3Plus(
        3,
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
    aspp = model.get_layer("aspp").get_config()
    assert (aspp["rates"], aspp["filters"], aspp["separable"]) == ((2, 5), 6, True)
    assert (aspp["dropout"], aspp["activation"]) == (0.25, "silu")
    assert model.get_layer("decoder_low_level").filters == 7
    assert type(model.get_layer("decoder_1")).__name__ == "AtrousSeparableConv2D"
    assert model.get_layer("decoder_1").filters == 10
    assert model.get_layer("decoder_1").get_config()["activation"] == "silu"
    assert model.name == "mine"
    assert type(model).from_config(model.get_config()).get_config() == model.get_config()


def test_head_of_v3():
    assert type(DeepLabV3(3, tiny()).get_layer("head")).__name__ == "AtrousConv2D"
    separable = DeepLabV3(3, tiny(), separable=True, head_filters=9).get_layer("head")
    assert (type(separable).__name__, separable.filters) == ("AtrousSeparableConv2D", 9)
    names = [layer.name for layer in DeepLabV3(3, tiny(), head_filters=None).layers]
    assert "head" not in names
