"""Parameters, strides, receptive fields and sizes of the backbones, as published."""

from __future__ import annotations

from functools import cache

import keras
import numpy as np
import pytest
from models.networks import zero_kernels

from keras_deeplab import backbones
from keras_deeplab.backbones.resnet import UNITS, resnet_beta
from keras_deeplab.backbones.xception import MIDDLE_UNITS
from keras_deeplab.graph import geometry, minimum_size, multiply_adds

SLOW = pytest.mark.slow


@cache
def built(name: str, **options) -> keras.Model:
    with zero_kernels():
        return backbones.build(name, (None, None, 3), **options)


def trainable(model: keras.Model) -> int:
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


# As the ImageNet classifiers have it.
CLASSIFIER = {"divisible_by": 8, "classifier_conv": True, "padding": "end"}
# Trainable parameters and all, where known: those of torchvision's and keras.applications' networks
# without their dense layers.
PARAMETERS = [
    ("resnet50", {}, 25_557_032 - 2_049_000, 23_508_032 + 2 * 26_560),
    pytest.param("resnet101", {}, 44_549_160 - 2_049_000, None, marks=SLOW),
    pytest.param("resnet152", {}, 60_192_808 - 2_049_000, None, marks=SLOW),
    # Without the 320 -> 1280 convolution and its batch norm.
    ("mobilenet_v2", {}, 2_223_872 - 320 * 1280 - 2 * 1280, 2_257_984 - 320 * 1280 - 4 * 1280),
    ("mobilenet_v2", {"depth_multiplier": 0.35, **CLASSIFIER}, None, 410_208),
    ("mobilenet_v2", {"depth_multiplier": 0.5, **CLASSIFIER}, None, 706_224),
    ("mobilenet_v2", {"depth_multiplier": 1.4, **CLASSIFIER}, None, 4_363_712),
    ("mobilenet_v3_large", {}, 5_483_032 - 961 * 1280 - 1281 * 1000, None),
    ("mobilenet_v3_small", {}, 2_542_856 - 577 * 1024 - 1025 * 1000, None),
    ("vgg16", {}, 14_714_688, 14_714_688),
    ("alexnet", {}, 2_469_696, 2_469_696),
]


@pytest.mark.parametrize("name, options, parameters, total", PARAMETERS)
def test_parameters(name, options, parameters, total):
    model = built(name, **options)
    assert parameters in (None, trainable(model))
    assert total in (None, model.count_params())


# Stride, receptive field, size of an image, size of its features.
FIGURES = [
    ("resnet50", {}, 32, 427, (225, 321), (8, 11)),
    pytest.param("resnet101", {}, 32, 971, (224, 224), (7, 7), marks=SLOW),
    # Three 3x3 convolutions cover 11 pixels, the 7x7 covers 7.
    ("resnet50_beta", {}, 32, 487, (513, 225), (17, 8)),
    ("vgg16", {}, 32, 212, (97, 225), (4, 8)),
    ("vgg16", {"atrous": True}, 8, 204, (97, 64), (13, 8)),
    # V1's last poolings keep the size of the map, however the others round.
    ("vgg16", {"atrous": True, "pool_ceil": False}, 8, 204, (97, 64), (12, 8)),
    ("vgg16", {"atrous": True, "pool_size": 3}, 8, 227, (321, 321), (41, 41)),
    ("alexnet", {}, 16, 163, (224, 224), (13, 13)),
]


@pytest.mark.parametrize("name, options, stride, field, image, size", FIGURES)
def test_stride_field_and_size(name, options, stride, field, image, size):
    found = geometry(built(name, **options), *image).output
    assert found.stride == (stride, stride)
    assert found.receptive_field == (field, field)
    assert found.size == size


@pytest.mark.parametrize(
    "name", ["resnet50", "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small"]
)
def test_every_size_shares_one_grid(name):
    for size in ((None, None), (224, 224), (225, 97), (1, 2)):
        found = geometry(built(name), *size).output
        assert (found.stride, found.offset) == ((32, 32), (0, 0))
        assert size[0] is None or found.size == tuple(-(-n // 32) for n in size)


@pytest.mark.slow
def test_offsets_of_other_paddings(monkeypatch):
    same = geometry(built("mobilenet_v2", depth_multiplier=0.35, padding="same"), 224, 225)
    assert same.output.offset == (31, 0)
    monkeypatch.setitem(UNITS, 50, (1, 1, 1, 3))
    assert geometry(resnet_beta(50), 513, 512).output.offset == (0, 2)


def test_strides_of_the_beta_resnet_are_in_the_last_units():
    found = geometry(built("resnet50_beta"))
    layers = ("stage1_unit2_3_norm", "stage1_unit2_out", "stage1_unit3_out", "stage3_unit6_out")
    assert [found[layer].stride[0] for layer in layers] == [4, 4, 8, 32]


@pytest.mark.slow
@pytest.mark.parametrize(
    "depth, entry, middle", [(41, (2, 2, 2), 1), (65, (2, 2, 2), 16), (71, (2, 1, 2, 1, 2), 16)]
)
def test_strides_and_field_of_xception_follow_from_the_figure(depth, entry, middle, monkeypatch):
    assert MIDDLE_UNITS == {41: 8, 65: 16, 71: 16}
    monkeypatch.setitem(MIDDLE_UNITS, 41, 1)
    with zero_kernels():
        found = geometry(backbones.build(f"xception{depth}", (None, None, 3)), 513, 321)
    field = step = 1
    for unit in [None, *entry, *[1] * middle, 2, 1]:  # the stem has two convolutions
        for stride in (2, 1) if unit is None else (1, 1, unit):
            field, step = field + 2 * step, step * stride
    assert (found.output.stride, found.output.offset) == ((32, 32), (0, 0))
    assert found.output.size == (17, 11)
    assert found.output.receptive_field == (field, field)
    assert found["entry3_conv2" if depth == 71 else "entry2_conv2"].stride == (4, 4)


@pytest.mark.slow
def test_widths_of_other_multipliers_are_rounded_as_the_authors_do():
    """0.5: whole numbers for what a block gives, multiples of 8 inside; 1 keeps multiples of 8."""
    half = built("mobilenet_v2", depth_multiplier=0.5)
    names = ["stem", "block0_project", "block1_project", "block3_project", "block6_project"]
    names += ["block10_project", "block13_project", "block16_project"]
    widths = [half.get_layer(f"{name}_conv").filters for name in names]
    assert widths == [16, 8, 12, 16, 32, 48, 80, 160]
    assert half.get_layer("block2_expand_conv").filters == 72
    # 0.35 x 24 = 8.4 becomes 8, and 6 x 8 = 48; 0.35 x 320 = 112.
    odd = built("mobilenet_v2", depth_multiplier=0.35)
    assert odd.output_shape[-1] == 112
    assert odd.get_layer("block3_expand_conv").filters == 48
    assert odd.get_layer("block4_expand_conv").filters == 64  # 6 x 11 = 66, to the multiple of 8


def test_alexnet_has_the_published_cost_and_least_size():
    network = built("alexnet")
    assert sum(multiply_adds(network, 224, 224).values()) == 655_566_528
    assert minimum_size(network) == (31, 31)
    for side in range(31, 64):
        found = geometry(network, side, 2 * side).output.size
        assert found == ((side - 15) // 16, (2 * side - 15) // 16)
