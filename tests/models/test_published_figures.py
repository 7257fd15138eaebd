"""Parameters, multiply-adds and receptive fields of the published models."""

from __future__ import annotations

from functools import cache

import keras
import numpy as np
import pytest

import keras_deeplab
from keras_deeplab.backbones import resnet
from keras_deeplab.graph import geometry, multiply_adds, with_output_stride
from keras_deeplab.models.backbone import completed

V1, V2 = keras_deeplab.DeepLabV1, keras_deeplab.DeepLabV2
V3, V3PLUS = keras_deeplab.DeepLabV3, keras_deeplab.DeepLabV3Plus


@cache
def built(cls: type, **arguments) -> keras.Model:
    return cls(**arguments)


def trainable(model: keras.Model) -> int:
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


def giga(model: keras.Model, height: int, width: int) -> float:
    return sum(multiply_adds(model, height, width).values()) / 1e9


def torchvision_layout(backbone: str, **more) -> keras.Model:
    return built(V3, backbone=backbone, output_stride=8, multi_grid=(1, 1, 1), **more)


SLOW = pytest.mark.slow
NO_ASPP_NO_HEAD = {"aspp_rates": (), "head_filters": None}
# Trainable parameters and all, of models with default arguments, 21 classes.
COUNTS = [
    (V1, None, {}, 20_505_429, 20_505_429),
    (V2, "vgg16", {}, 37_877_652, 37_877_652),
    pytest.param(V2, "resnet101", {}, 44_048_532, 44_153_876, marks=SLOW),
    (V3, None, {}, 39_638_869, 39_695_573),
    pytest.param(V3, "resnet101", {}, 58_630_997, 58_739_925, marks=SLOW),
    (V3, "mobilenet_v2", NO_ASPP_NO_HEAD, 2_113_557, 2_146_645),
    (V3PLUS, None, {}, 40_352_181, 40_409_493),
    pytest.param(V3PLUS, "resnet101", {}, 59_344_309, 59_453_845, marks=SLOW),
    pytest.param(V3PLUS, "xception41", {}, 28_108_661, 28_241_573, marks=SLOW),
    pytest.param(V3PLUS, "xception65", {}, 41_055_413, 41_258_213, marks=SLOW),
    pytest.param(V3PLUS, "resnet101_beta", {}, 45_812_037, 45_935_365, marks=SLOW),
]


@pytest.mark.parametrize("cls, backbone, named, parameters, total", COUNTS)
def test_parameters_of_the_defaults(cls, backbone, named, parameters, total):
    given = {} if backbone is None else {"backbone": backbone}
    model = built(cls, **given, **named)
    assert (trainable(model), model.count_params()) == (parameters, total)


@pytest.mark.parametrize("name", keras_deeplab.backbones.NAMES)
def test_the_head_is_separable_where_the_authors_is(name):
    arguments = {"backbone": name, "backbone_options": {}}
    expected = name.startswith(("xception", "mobilenet")) or name.endswith("_beta")
    for given, separable in ((None, expected), (False, False), (True, True)):
        assert completed({**arguments, "separable": given})["separable"] is separable


def test_the_head_on_a_network_of_the_user_is_not_separable():
    network = keras.applications.MobileNetV2(include_top=False, weights=None, alpha=0.35)
    model = V3PLUS(2, network, aspp_filters=8, decoder_filters=8)
    assert model.get_config()["separable"] is False


def test_a_default_that_is_separable_is_so_in_aspp_and_decoder():
    model = V3PLUS(2, "mobilenet_v2", aspp_filters=8, decoder_filters=8)
    assert model.get_config()["separable"] is True
    assert model.get_layer("aspp").separable
    assert type(model.get_layer("decoder_1")) is keras_deeplab.layers.AtrousSeparableConv2D


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


@pytest.mark.parametrize(
    "backbone, parameters, total, multiplications",
    [
        ("resnet50", 42_004_074, 42_061_290, 178.722),
        pytest.param("resnet101", 60_996_202, 61_105_642, 258.743, marks=pytest.mark.slow),
    ],
)
def test_v3_with_torchvisions_auxiliary_head(backbone, parameters, total, multiplications):
    model = torchvision_layout(backbone, auxiliary_layer="auto")
    assert (trainable(model), model.count_params()) == (parameters, total)
    assert giga(model.training_graph, 520, 520) == pytest.approx(multiplications, abs=0.0005)
    # At prediction the head costs nothing.
    head = (1024 * 256 * 9 + 256 * 21) * 65 * 65 / 1e9
    assert giga(model, 520, 520) == pytest.approx(multiplications - head, abs=0.0005)


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


@pytest.mark.parametrize("pool_size, field, seen", [(3, 227, 419), (2, 204, 396)])
def test_v1(pool_size, field, seen):
    model = V1(backbone_options={"pool_size": pool_size})
    assert trainable(model) == model.count_params() == 20_505_429
    assert giga(model, 321, 321) == pytest.approx(50.9, abs=0.05)
    found = geometry(model, 321, 321)
    assert found["backbone"].receptive_field == (field, field)
    assert found["backbone"].stride == (8, 8)
    assert found["fc6"].receptive_field == (seen, seen)
    assert model.get_layer("fc6").dilation_rate == (12, 12)


def test_v2_vgg16():
    model = V2(backbone="vgg16")
    assert trainable(model) == model.count_params() == 37_877_652
    assert giga(model, 513, 513) == pytest.approx(202.0, abs=0.05)
    found = geometry(model, 513, 513)
    for branch, (rate, seen) in enumerate(zip((6, 12, 18, 24), (323, 419, 515, 611), strict=True)):
        assert model.get_layer(f"fc6_{branch}").dilation_rate == (rate, rate)
        assert found[f"fc6_{branch}"].receptive_field == (seen, seen)


@pytest.mark.slow
def test_v2_resnet101():
    model = V2()
    assert (trainable(model), model.count_params()) == (44_048_532, 44_153_876)
    # The strides are on the first 1x1, as in the paper's network; on the 3x3 it would be 189.3.
    assert giga(model, 513, 513) == pytest.approx(188.89, abs=0.005)
    found = geometry(model, 513, 513)
    assert found["backbone"].receptive_field == (1027, 1027)
    rates = [model.get_layer(f"logits_{branch}").dilation_rate[0] for branch in range(4)]
    assert rates == [6, 12, 18, 24]
    units = [f"stage{stage}_unit{unit}_2_conv" for stage, unit in ((3, 1), (3, 23), (4, 1), (4, 3))]
    assert [model.backbone.get_layer(unit).dilation_rate[0] for unit in units] == [2, 2, 4, 4]


@pytest.mark.slow
def test_v2_resnet101_with_the_strides_on_the_3x3():
    assert giga(V2(stride_on="3x3"), 513, 513) == pytest.approx(189.3, abs=0.05)


@pytest.mark.slow
def test_v3_cascade():
    """Section 3.2: each block works at twice the rate of the one before, times the multi-grid."""
    model = V3(cascade=True, multi_grid=(1, 2, 1))
    config = model.get_config()
    assert (config["stride_on"], config["aspp_rates"]) == ("1x1", ())
    found = geometry(model, 513, 513)
    assert found["backbone"].stride == (16, 16)
    for stage, rate in ((4, 2), (5, 4), (6, 8), (7, 16)):
        units = [f"stage{stage}_unit{unit}_2_conv" for unit in (1, 2, 3)]
        rates = [model.backbone.get_layer(unit).dilation_rate[0] for unit in units]
        assert rates == [rate, 2 * rate, rate]
    # Every copy of block 4 has its weights, with a projection of 2048 channels as shortcut.
    plain = resnet(50, stride_on="1x1")
    block = sum(
        int(np.prod(weight.shape))
        for layer in plain.layers
        if layer.name.startswith("stage4")
        for weight in layer.trainable_weights
    )
    copy = block + (2048 - 1024) * (2048 + 512)  # the first unit reads 2048 channels, not 1024
    assert trainable(model.backbone) == trainable(plain) + 3 * copy
    assert trainable(model) == trainable(model.backbone) + 2048 * 21 + 21


def test_v3_mobilenet_v2_of_half_the_width():
    options = {"depth_multiplier": 0.5, "padding": "same"}
    arguments = {"backbone": "mobilenet_v2", "backbone_options": options}
    model = V3(aspp_rates=(), head_filters=None, **arguments)
    assert (trainable(model), model.count_params()) == (697_013, 714_325)
    assert giga(model, 513, 513) == pytest.approx(0.867, abs=0.0005)
    assert model.get_config()["backbone_options"].items() >= {**options, "epsilon": 1e-3}.items()


def test_v3_mobilenet_v3_large():
    options = {"dilated_early": True}
    model = V3(backbone="mobilenet_v3_large", auxiliary_layer="auto", backbone_options=options)
    assert trainable(model) == 11_029_328
    assert giga(model.training_graph, 520, 520) == pytest.approx(10.45, abs=0.02)


@pytest.mark.parametrize(
    "depth, parameters, total, multiplications",
    [
        (41, 28_108_661, 28_241_573, 40.0),
        pytest.param(65, 41_055_413, 41_258_213, 54.04, marks=pytest.mark.slow),
    ],
)
def test_v3_plus_xception(depth, parameters, total, multiplications):
    model = built(V3PLUS, backbone=f"xception{depth}")
    assert (trainable(model), model.count_params()) == (parameters, total)
    assert giga(model, 513, 513) == pytest.approx(multiplications, abs=0.02)
    config = model.get_config()
    assert config["low_level_layer"] == "entry2_conv2"
    assert config["backbone_options"] == {"epsilon": 1e-3}
    assert config["multi_grid"] == (1, 1, 1)
    assert config["preprocessing"] == "tf"


@pytest.mark.slow
def test_v3_plus_xception65_at_stride_8_and_for_cityscapes():
    model = built(V3PLUS, backbone="xception65")
    fine = model.with_output_stride(8)
    assert fine.count_params() == 41_258_213
    assert fine.get_config()["aspp_rates"] == (12, 24, 36)
    assert giga(fine, 513, 513) == pytest.approx(176.85, abs=0.005)
    cityscapes = model.with_num_classes(19)
    assert (trainable(cityscapes), cityscapes.count_params()) == (41_054_899, 41_257_699)
    assert giga(cityscapes, 1025, 2049) == pytest.approx(418.4, abs=0.05)


@pytest.mark.slow
def test_v3_plus_resnet101_beta():
    model = built(V3PLUS, backbone="resnet101_beta")
    assert (trainable(model), model.count_params()) == (45_812_037, 45_935_365)
    assert giga(model, 513, 513) == pytest.approx(65.17, abs=0.005)
    config = model.get_config()
    assert config["low_level_layer"] == "stage1_unit2_3_norm"
    assert config["multi_grid"] == (1, 2, 4)


def test_receptive_fields_of_slim_and_torchvision():
    assert geometry(resnet(50, stride_on="1x1")).output.receptive_field == (483, 483)
    grid = resnet(50, stride_on="1x1", multi_grid=(1, 2, 4))
    for network in (grid, with_output_stride(grid, 16), with_output_stride(grid, 8)):
        assert geometry(network).output.receptive_field == (739, 739)


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
