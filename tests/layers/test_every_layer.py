from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from layer_checks import (
    Case,
    check_config,
    check_mixed_precision,
    check_training_and_files,
    check_ways_of_calling,
)

from keras_deeplab import layers

CASES = [
    Case("conv", partial(layers.AtrousConv2D, 4, 3, dilation_rate=(2, 3), activation="elu")),
    Case("conv_strided", partial(layers.AtrousConv2D, 4, (3, 5), strides=2, batch_norm=False)),
    Case("separable", partial(layers.AtrousSeparableConv2D, 4, dilation_rate=2)),
    Case(
        "separable_plain",
        partial(
            layers.AtrousSeparableConv2D, 4, 3, False, strides=2, batch_norm=False, activation=None
        ),
    ),
    Case("aspp", partial(layers.ASPP, 4, rates=(1, (2, 3)), activation="swish")),
    Case(
        "aspp_separable",
        partial(layers.ASPP, 4, (2,), separable=True, image_pooling=False, dropout=0.5),
    ),
    Case("image_pooling", partial(layers.ImagePooling, 4, activation=None, epsilon=1e-3)),
    Case("batch_norm", partial(layers.BatchNormalization, momentum=0.9, frozen_statistics=True)),
    Case("batch_norm_plain", partial(layers.BatchNormalization, scale=False, synchronized=True)),
    Case("pyramid_max", partial(layers.SpatialPyramidPooling2D, (2, 1))),
    Case("pyramid_average", partial(layers.SpatialPyramidPooling2D, (3,), "average")),
    Case("pool_max", partial(layers.AtrousPooling2D, (3, 2), "max", (2, 1))),
    Case(
        "pool_average",
        partial(layers.AtrousPooling2D, (3, 3), "average", (2, 2), source_strides=(2, 2)),
    ),
    Case("pool_padded", partial(layers.AtrousPooling2D, (2, 2), padding=((1, 0), (0, 1)))),
    Case("pool_valid", partial(layers.AtrousPooling2D, (2, 2), "average", padding="valid")),
    Case("padding", partial(layers.AtrousPadding2D, (3, 2), (2, 2), (2, 1))),
    Case("resize", layers.ResizeLike, reference=(5, 3)),
    Case("resize_corners", partial(layers.ResizeLike, align_corners=True), reference=(5, 3)),
    Case("resize_by", partial(layers.ResizeBy, 0.75)),
    Case("resize_by_corners", partial(layers.ResizeBy, 1.5, align_corners=True)),
    Case("resize_nearest", partial(layers.ResizeLike, "nearest"), reference=(5, 3)),
    Case("pad_to_minimum", partial(layers.PadToMinimum, 7, 11)),
    Case("reverse_channels", layers.ReverseChannels),
    Case("crop", layers.CropLike, reference=(-2, -3)),
]
every_layer = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def test_no_layer_is_forgotten():
    checked = {type(case.make()).__name__ for case in CASES}
    assert checked == set(layers.__all__) - {"CompositeLayer"}


@every_layer
def test_config_round_trip(case: Case):
    check_config(case)


@every_layer
def test_eager_symbolic_and_traced_agree(case: Case):
    check_ways_of_calling(case)


@every_layer
def test_mixed_precision(case: Case):
    check_mixed_precision(case)


def test_fit_save_export(tmp_path: Path):
    one_of_each_class = {type(case.make()): case for case in CASES}
    check_training_and_files(list(one_of_each_class.values()), tmp_path)


CONV, SEPARABLE, POOL = layers.AtrousConv2D, layers.AtrousSeparableConv2D, layers.AtrousPooling2D


@pytest.mark.parametrize(
    "layer_class, arguments, argument, value",
    [
        (layers.ASPP, {"rates": 6}, "rates", 6),
        (layers.ASPP, {"rates": (6, 0)}, "rates", 0),
        (layers.ASPP, {"filters": -1}, "filters", -1),
        (layers.ASPP, {"dropout": 1}, "dropout", 1),
        (CONV, {"filters": 0}, "filters", 0),
        (CONV, {"filters": 4, "kernel_size": 4}, "kernel_size", 4),
        (SEPARABLE, {"filters": 4, "kernel_size": 3.0}, "kernel_size", 3.0),
        (SEPARABLE, {"filters": 4, "strides": None}, "strides", None),
        (CONV, {"filters": 4, "dilation_rate": (1, 2, 3)}, "dilation_rate", (1, 2, 3)),
        (CONV, {"filters": 4, "strides": 2, "dilation_rate": 2}, "dilation_rate", 2),
        (POOL, {"pool_size": 0}, "pool_size", 0),
        (POOL, {"pool_size": 3, "mode": "min"}, "mode", "min"),
        (POOL, {"pool_size": 3, "dilation_rate": (1, -1)}, "dilation_rate", (1, -1)),
        (POOL, {"pool_size": 3, "padding": "full"}, "padding", "full"),
        (POOL, {"pool_size": 3, "padding": 1}, "padding", 1),
        (POOL, {"pool_size": 3, "padding": ((1, 0), 2)}, "padding", 2),
        (POOL, {"pool_size": 3, "padding": ((1, 0), (3, 0))}, "padding", ((1, 0), (3, 0))),
        (POOL, {"pool_size": 3, "source_strides": (0, 1)}, "source_strides", (0, 1)),
        (layers.BatchNormalization, {"frozen_statistics": "yes"}, "frozen_statistics", "yes"),
        (layers.SpatialPyramidPooling2D, {"levels": ()}, "levels", ()),
        (layers.SpatialPyramidPooling2D, {"levels": (4, 0)}, "levels", (4, 0)),
        (layers.SpatialPyramidPooling2D, {"mode": "mean"}, "mode", "mean"),
        (layers.ResizeLike, {"interpolation": "cubic"}, "interpolation", "cubic"),
        (
            layers.ResizeLike,
            {"interpolation": "nearest", "align_corners": True},
            "interpolation",
            "nearest",
        ),
        (layers.ResizeBy, {"scale": 0}, "scale", 0),
        (layers.PadToMinimum, {"height": 0, "width": 4}, "height", 0),
        (layers.PadToMinimum, {"height": 4, "width": 4.5}, "width", 4.5),
    ],
)
def test_errors_name_argument_and_value(
    layer_class: type, arguments: dict[str, Any], argument: str, value: Any
):
    received = re.escape(f"Received: {argument}={value!r}")
    with pytest.raises(ValueError, match=f"`{argument}` must be .*{received}"):
        layer_class(**arguments)
