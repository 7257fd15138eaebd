from __future__ import annotations

import re
from functools import partial
from typing import Any

import pytest
from layer_checks import Case, check_layer

from keras_deeplab import layers

CONV, SEPARABLE, ASPP = layers.AtrousConv2D, layers.AtrousSeparableConv2D, layers.ASPP
NORM, POOL, PYRAMID = (
    layers.BatchNormalization,
    layers.AtrousPooling2D,
    layers.SpatialPyramidPooling2D,
)
DILATED = {"dilation_rate": 2, "padding": "same"}
BARE = {"batch_norm": False, "activation": None, "strides": 2}
CASES = [
    Case("dilated", partial(layers.Conv2D, 4, 3, **DILATED)),
    Case("dilated_depthwise", partial(layers.DepthwiseConv2D, 3, **DILATED)),
    Case("dilated_separable", partial(layers.SeparableConv2D, 4, 3, **DILATED)),
    Case("conv_strided", partial(CONV, 4, (3, 5), strides=2, batch_norm=False)),
    Case("conv", partial(CONV, 4, 3, dilation_rate=(2, 3), activation="elu")),
    Case("separable_plain", partial(SEPARABLE, 4, 3, False, **BARE)),
    Case("separable", partial(SEPARABLE, 4, dilation_rate=2)),
    Case("aspp_separable", partial(ASPP, 4, (2,), separable=True, image_pooling=False)),
    Case("aspp", partial(ASPP, 4, rates=(1, (2, 3)), activation="swish")),
    Case("image_pooling", partial(layers.ImagePooling, 4, activation=None, epsilon=1e-3)),
    Case("norm_frozen", partial(NORM, momentum=0.9, frozen_statistics=True)),
    Case("norm", partial(NORM, scale=False, synchronized=True)),
    Case("pyramid_max", partial(PYRAMID, (2, 1))),
    Case("pyramid_average", partial(PYRAMID, (3,), "average")),
    Case("pool_max", partial(POOL, (3, 2), "max", (2, 1), padding=((1, 0), (0, 1)))),
    Case("pool_valid", partial(POOL, (2, 2), "average", padding="valid")),
    Case("pool_average", partial(POOL, (3, 3), "average", (2, 2), source_strides=(2, 2))),
    Case("padding", partial(layers.AtrousPadding2D, (3, 2), (2, 2), (2, 1))),
    Case("resize_corners", partial(layers.ResizeLike, align_corners=True), reference=(5, 3)),
    Case("resize", layers.ResizeLike, reference=(5, 3)),
    Case("resize_by_corners", partial(layers.ResizeBy, 1.5, align_corners=True)),
    Case("resize_by", partial(layers.ResizeBy, 0.75)),
    Case("pad_to_minimum", partial(layers.PadToMinimum, (7, 11))),
    Case("reverse_channels", layers.ReverseChannels),
    Case("crop", layers.CropLike, reference=(-2, -3)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_all_ways_of_calling_agree(case: Case):
    check_layer(case)


def test_no_layer_is_forgotten():
    checked = {type(case.make()).__name__ for case in CASES}
    assert checked == set(layers.__all__) - {"CompositeLayer"}


@pytest.mark.parametrize(
    "layer_class, arguments, argument, value",
    [
        (ASPP, {"rates": 6}, "rates", 6),
        (ASPP, {"rates": (6, 0)}, "rates", 0),
        (ASPP, {"filters": -1}, "filters", -1),
        (ASPP, {"dropout": 1}, "dropout", 1),
        (CONV, {"filters": 4, "kernel_size": 4}, "kernel_size", 4),
        (SEPARABLE, {"filters": 4, "strides": None}, "strides", None),
        (CONV, {"filters": 4, "dilation_rate": (1, 2, 3)}, "dilation_rate", (1, 2, 3)),
        (CONV, {"filters": 4, "strides": 2, "dilation_rate": 2}, "dilation_rate", 2),
        (POOL, {"pool_size": 0}, "pool_size", 0),
        (POOL, {"pool_size": 3, "mode": "min"}, "mode", "min"),
        (POOL, {"pool_size": 3, "dilation_rate": (1, -1)}, "dilation_rate", (1, -1)),
        (POOL, {"pool_size": 3, "padding": "full"}, "padding", "full"),
        (POOL, {"pool_size": 3, "padding": ((1, 0), 2)}, "padding", ((1, 0), 2)),
        (POOL, {"pool_size": 3, "padding": ((1, 0), (3, 0))}, "padding", ((1, 0), (3, 0))),
        (POOL, {"pool_size": 3, "source_strides": (0, 1)}, "source_strides", (0, 1)),
        (NORM, {"frozen_statistics": "yes"}, "frozen_statistics", "yes"),
        (PYRAMID, {"levels": ()}, "levels", ()),
        (PYRAMID, {"levels": (4, 0)}, "levels", (4, 0)),
        (PYRAMID, {"mode": "mean"}, "mode", "mean"),
        (layers.ResizeBy, {"scale": 0}, "scale", 0),
        (layers.PadToMinimum, {"minimum": (4, 0)}, "minimum", (4, 0)),
    ],
)
def test_errors_name_argument_and_value(
    layer_class: type, arguments: dict[str, Any], argument: str, value: Any
):
    received = re.escape(f"Received: {argument}={value!r}")
    with pytest.raises(ValueError, match=f"`{argument}` must be .*{received}"):
        layer_class(**arguments)
