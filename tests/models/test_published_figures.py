"""Parameters, multiply-adds and receptive fields of the published models."""

from __future__ import annotations

from functools import cache

import keras
import numpy as np
import pytest

import keras_deeplab
from keras_deeplab.backbones import resnet
from keras_deeplab.graph import geometry, multiply_adds, with_output_stride

V3, V3PLUS = keras_deeplab.DeepLabV3, keras_deeplab.DeepLabV3Plus


@cache
def built(cls: type, **arguments) -> keras.Model:
    return cls(**arguments)


def trainable(model: keras.Model) -> int:
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


def giga(model: keras.Model, height: int, width: int) -> float:
    return sum(multiply_adds(model, height, width).values()) / 1e9


def torchvision_layout(backbone: str) -> keras.Model:
    return built(V3, backbone=backbone, output_stride=8, multi_grid=(1, 1, 1))


def test_no_argument_is_needed():
    model = built(V3PLUS)
    assert (model.num_classes, model.output_stride) == (21, 16)
    assert model.get_config()["backbone"] == "resnet50"
    assert (model.get_config()["multi_grid"], model.get_config()["stride_on"]) == ((1, 2, 4), "3x3")
    assert model.input_shape == (None, None, None, 3)
    assert model.output_shape == (None, None, None, 21)


def test_v3_resnet50_in_torchvision_layout():
    model = torchvision_layout("resnet50")
    assert (trainable(model), model.count_params()) == (39_638_869, 39_695_573)
    assert giga(model, 520, 520) == pytest.approx(168.7, abs=0.05)


def test_v3_resnet50():
    model = built(V3)
    assert trainable(model) == 39_638_869
    assert giga(model, 513, 513) == pytest.approx(51.1, abs=0.05)


def test_v3_plus_resnet50():
    model = built(V3PLUS)
    assert (trainable(model), model.count_params()) == (40_352_181, 40_409_493)
    assert giga(model, 513, 513) == pytest.approx(72.2, abs=0.05)


def test_v3_plus_resnet50_separable():
    model = built(V3PLUS, separable=True)
    assert (trainable(model), model.count_params()) == (26_696_133, 26_766_853)
    assert giga(model, 513, 513) == pytest.approx(39.6, abs=0.05)


def test_v3_mobilenet_v2_without_rates_and_decoder():
    model = V3(backbone="mobilenet_v2", aspp_rates=(), head_filters=None)
    assert (trainable(model), model.count_params()) == (2_113_557, 2_146_645)
    assert giga(model, 513, 513) == pytest.approx(2.74, abs=0.005)
    assert giga(model.with_output_stride(8), 513, 513) == pytest.approx(8.83, abs=0.005)


@pytest.mark.slow
def test_resnet101():
    v3 = V3(backbone="resnet101")
    assert trainable(v3) / 1e6 == pytest.approx(58.63, abs=0.005)
    assert giga(v3, 513, 513) == pytest.approx(71.7, abs=0.05)
    for separable, parameters, multiplications in ((False, 59.34, 92.8), (True, 45.69, 60.2)):
        model = V3PLUS(backbone="resnet101", separable=separable)
        assert trainable(model) / 1e6 == pytest.approx(parameters, abs=0.005)
        assert giga(model, 513, 513) == pytest.approx(multiplications, abs=0.05)


@pytest.mark.slow
def test_resnet101_and_152_differ_from_resnet50_as_their_backbones_do():
    """torchvision's 60,996,202 for ResNet101 is its 42,004,074 for ResNet50 and this."""
    shallow = trainable(torchvision_layout("resnet50"))
    for name, more in (
        ("resnet101", 60_996_202 - 42_004_074),
        ("resnet152", 60_192_808 - 25_557_032),
    ):
        assert trainable(torchvision_layout(name)) == shallow + more


def branch_fields(model: keras.Model) -> list[tuple[int, int]]:
    found = geometry(model)
    return [found[f"aspp/atrous_{index}/conv"].receptive_field for index in range(3)]


def test_receptive_fields_of_the_branches_are_the_same_at_every_output_stride():
    expected = [(619, 619), (811, 811), (1003, 1003)]
    for output_stride, rates in ((8, (12, 24, 36)), (16, (6, 12, 18)), (32, (3, 6, 9))):
        if output_stride == 8:
            model = torchvision_layout("resnet50")
        else:
            model = V3(output_stride=output_stride, multi_grid=(1, 1, 1), aspp_filters=8)
        assert model.get_config()["aspp_rates"] == rates
        assert geometry(model)["backbone"].stride == (output_stride,) * 2
        assert branch_fields(model) == expected


def test_multi_grid_rates_by_where_the_stride_is():
    """In the last stage at stride 16: 1,4,8 with the stride on the 3x3, 2,4,8 on the 1x1."""
    for stride_on, rates in (("3x3", (1, 4, 8)), ("1x1", (2, 4, 8))):
        backbone = with_output_stride(resnet(50, multi_grid=(1, 2, 4), stride_on=stride_on), 16)
        units = [backbone.get_layer(f"stage4_unit{n}_2_conv") for n in (1, 2, 3)]
        assert tuple(unit.dilation_rate[0] for unit in units) == rates
