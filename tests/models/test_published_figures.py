"""Parameters, multiply-adds and receptive fields of the published models, of 21 classes."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from networks import small, tiny, zero_kernels

import keras_deeplab
from keras_deeplab.backbones import resnet
from keras_deeplab.graph import geometry, multiply_adds
from keras_deeplab.models.arguments import completed

V1, V2 = keras_deeplab.DeepLabV1, keras_deeplab.DeepLabV2
V3, V3PLUS = keras_deeplab.DeepLabV3, keras_deeplab.DeepLabV3Plus
SLOW = pytest.mark.slow
BUILT: dict[str, keras.Model] = {}


def built(cls: type, backbone: str | None = None, **arguments) -> keras.Model:
    """Each once."""
    key = f"{cls.__name__} {backbone} {arguments}"
    if key not in BUILT:
        given = {} if backbone is None else {"backbone": backbone}
        with zero_kernels():
            BUILT[key] = cls(**given, **arguments)
    return BUILT[key]


def trainable(model: keras.Model) -> int:
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


def giga(model: keras.Model, height: int, width: int) -> float:
    """Of a training step's network, which has an auxiliary head too."""
    network = getattr(model, "training_graph", None) or model
    return sum(multiply_adds(network, height, width).values()) / 1e9


BARE = {"aspp_rates": (), "head_filters": None}
# torchvision's layout, with its auxiliary head; without it, 39,638,869 parameters.
TORCHVISION = {"output_stride": 8, "multi_grid": (1, 1, 1), "auxiliary_layer": "auto"}
HALF = {"depth_multiplier": 0.5, "padding": "same"}
EARLY = {"auxiliary_layer": "auto", "backbone_options": {"dilated_early": True}}
# Trainable parameters and all; 10^9 multiply-adds, at the side of a square image.
FIGURES = [
    (V1, None, {}, 20_505_429, 20_505_429, 50.9, 321),
    (V2, "vgg16", {}, 37_877_652, 37_877_652, 202.0, 513),
    # The strides are on the first 1x1, as in the paper's network.
    pytest.param(V2, None, {}, 44_048_532, 44_153_876, 188.89, 513, marks=SLOW),
    pytest.param(V2, None, {"stride_on": "3x3"}, 44_048_532, 44_153_876, 189.3, 513, marks=SLOW),
    pytest.param(V3, None, {}, 39_638_869, 39_695_573, 51.1, 513, marks=SLOW),
    pytest.param(V3, "resnet101", {}, 58_630_997, 58_739_925, 71.7, 513, marks=SLOW),
    (V3, "resnet50", TORCHVISION, 42_004_074, 42_061_290, 178.722, 520),
    pytest.param(V3, "resnet101", TORCHVISION, 60_996_202, 61_105_642, 258.743, 520, marks=SLOW),
    (V3, "mobilenet_v2", BARE, 2_113_557, 2_146_645, 2.74, 513),
    (V3, "mobilenet_v2", {**BARE, "backbone_options": HALF}, 697_013, 714_325, 0.867, 513),
    (V3, "mobilenet_v3_large", EARLY, 11_029_328, 11_057_332, 10.45, 520),
    (V3PLUS, None, {}, 40_352_181, 40_409_493, 72.2, 513),
    pytest.param(V3PLUS, None, {"separable": True}, 26_696_133, 26_766_853, 39.6, 513, marks=SLOW),
    pytest.param(V3PLUS, "resnet101", {}, 59_344_309, 59_453_845, 92.8, 513, marks=SLOW),
    pytest.param(V3PLUS, "xception41", {}, 28_108_661, 28_241_573, 40.0, 513, marks=SLOW),
    pytest.param(V3PLUS, "xception65", {}, 41_055_413, 41_258_213, 54.04, 513, marks=SLOW),
    pytest.param(V3PLUS, "resnet101_beta", {}, 45_812_037, 45_935_365, 65.17, 513, marks=SLOW),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "cls, backbone, arguments, parameters, total, multiplications, side", FIGURES
)
def test_figures(cls, backbone, arguments, parameters, total, multiplications, side):
    model = built(cls, backbone, **arguments)
    assert (trainable(model), model.count_params()) == (parameters, total)
    digits = len(str(multiplications).partition(".")[2])
    assert giga(model, side, side) == pytest.approx(multiplications, abs=0.5 / 10**digits)


def test_the_head_is_separable_where_the_authors_is(monkeypatch):
    for name in keras_deeplab.backbones.NAMES:
        arguments = {"backbone": name, "backbone_options": {}}
        expected = name.startswith(("xception", "mobilenet")) or name.endswith("_beta")
        for given, separable in ((None, expected), (False, False), (True, True)):
            assert completed({**arguments, "separable": given})["separable"] is separable
    config = small("v3_plus").get_config()  # on a user's network
    assert (config["separable"], config["low_level_layer"]) == (False, "stage4_out")
    own = keras_deeplab.backbones.Backbone(lambda input_shape: tiny(), "tf", separable=True)
    monkeypatch.setitem(keras_deeplab.backbones.BACKBONES, "resnet50", own)
    model = small("v3_plus", backbone="resnet50")
    assert model.get_layer("aspp").separable
    assert type(model.get_layer("decoder_1")) is keras_deeplab.layers.AtrousSeparableConv2D


def test_fields_of_v1():
    model = built(V1, None)
    found = geometry(model, 321, 321)
    assert found["backbone"].receptive_field == (227, 227)
    assert found["backbone"].stride == (8, 8)
    assert found["fc6"].receptive_field == (419, 419)


def test_fields_of_v2_on_vgg16():
    model = built(V2, "vgg16")
    found = geometry(model, 513, 513)
    for branch, (rate, seen) in enumerate(zip((6, 12, 18, 24), (323, 419, 515, 611), strict=True)):
        assert model.get_layer(f"fc6_{branch}").dilation_rate == (rate, rate)
        assert found[f"fc6_{branch}"].receptive_field == (seen, seen)


@SLOW
def test_rates_and_field_of_v2_on_resnet101():
    model = built(V2, None)
    assert geometry(model, 513, 513)["backbone"].receptive_field == (1027, 1027)
    rates = [model.get_layer(f"logits_{branch}").dilation_rate[0] for branch in range(4)]
    assert rates == [6, 12, 18, 24]
    units = [f"stage{stage}_unit{unit}_2_conv" for stage, unit in ((3, 1), (3, 23), (4, 1), (4, 3))]
    assert [model.backbone.get_layer(unit).dilation_rate[0] for unit in units] == [2, 2, 4, 4]


@SLOW
def test_v3_cascade():
    """Section 3.2: each block works at twice the rate of the one before, times the multi-grid."""
    model = built(V3, cascade=True, multi_grid=(1, 2, 1))
    config = model.get_config()
    assert (config["stride_on"], config["aspp_rates"]) == ("1x1", ())
    assert geometry(model, 513, 513)["backbone"].stride == (16, 16)
    for stage, rate in ((4, 2), (5, 4), (6, 8), (7, 16)):
        units = [f"stage{stage}_unit{unit}_2_conv" for unit in (1, 2, 3)]
        rates = [model.backbone.get_layer(unit).dilation_rate[0] for unit in units]
        assert rates == [rate, 2 * rate, rate]
    # Every copy of block 4 has its weights, with a projection of 2048 channels as shortcut.
    with zero_kernels():
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


@pytest.mark.slow
def test_v3_mobilenet_v2_at_stride_8():
    fine = built(V3, "mobilenet_v2", **BARE).with_output_stride(8)
    assert giga(fine, 513, 513) == pytest.approx(8.83, abs=0.005)


@pytest.mark.parametrize(
    "backbone, low_level, multi_grid, epsilon, preprocessing",
    [
        ("xception65", "entry2_conv2", (1, 1, 1), 1e-3, "tf"),
        ("resnet101_beta", "stage1_unit2_3_norm", (1, 2, 4), 1e-5, "tf"),
        ("resnet50", None, (1, 2, 4), 1e-5, "torch"),
    ],
)
def test_defaults_by_backbone(backbone, low_level, multi_grid, epsilon, preprocessing):
    arguments = {"backbone": backbone, "backbone_options": {}, "multi_grid": None}
    found = completed({**arguments, "preprocessing": "auto", "low_level_layer": None})
    assert (found["low_level_layer"], found["multi_grid"]) == (low_level, multi_grid)
    assert found["preprocessing"] == preprocessing
    assert found["backbone_options"]["epsilon"] == epsilon


@SLOW
def test_v3_plus_xception65_at_stride_8_and_for_cityscapes():
    model = built(V3PLUS, "xception65")
    with zero_kernels():
        fine, cityscapes = model.with_output_stride(8), model.with_num_classes(19)
    assert fine.count_params() == 41_258_213
    assert fine.get_config()["aspp_rates"] == (12, 24, 36)
    assert giga(fine, 513, 513) == pytest.approx(176.85, abs=0.005)
    assert (trainable(cityscapes), cityscapes.count_params()) == (41_054_899, 41_257_699)
    assert giga(cityscapes, 1025, 2049) == pytest.approx(418.4, abs=0.05)


@pytest.mark.slow
def test_receptive_fields_of_the_branches_are_the_same_at_every_output_stride():
    published = geometry(built(V3, "resnet50", **TORCHVISION))
    layers = [f"aspp/atrous_{index}/conv" for index in range(3)]
    assert [published[layer].receptive_field[0] for layer in layers] == [619, 811, 1003]
    fields = []
    for output_stride, rates in ((8, (12, 24, 36)), (16, (6, 12, 18)), (32, (3, 6, 9))):
        model = small("v3", output_stride=output_stride)
        assert model.get_config()["aspp_rates"] == rates
        found = geometry(model)
        assert found["backbone"].stride == (output_stride,) * 2
        fields.append([found[layer].receptive_field for layer in layers])
    assert fields[0] == fields[1] == fields[2]
