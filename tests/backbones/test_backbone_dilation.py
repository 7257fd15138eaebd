"""At a finer output stride the backbones' features hold the coarse ones, at the authors' rates."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import keras
import numpy as np
import pytest
from atrous_property import TOLERANCE, compare, rates
from calibration import calibrate, image

from keras_deeplab.backbones import (
    alexnet,
    mobilenet_v2,
    mobilenet_v3,
    resnet,
    resnet_beta,
    vgg16,
    xception,
)
from keras_deeplab.backbones.resnet import UNITS
from keras_deeplab.backbones.xception import MIDDLE_UNITS
from keras_deeplab.graph import geometry, with_output_stride
from keras_deeplab.graph.network import leaf_layers


def scaled(height: int, width: int, batch: int = 1) -> np.ndarray:
    return (image(height, width, batch) - 128) / 64


def stem_of(network: keras.Model) -> keras.Model:
    return keras.Model(network.input, network.get_layer("stem_pool").output)


MOBILENET = partial(mobilenet_v2, depth_multiplier=0.35)
# A builder, output strides and sizes of images. Padded at the end, odd maps are rounded down, and
# what they leave out is in the fine map.
CASES: dict[str, tuple[Callable[..., keras.Model], tuple[int, ...], list[tuple[int, int]]]] = {
    "alexnet": (alexnet, (4, 8), [(175, 111)]),
    "vgg16": (vgg16, (8,), [(128, 96)]),
    # Of 131x103 the first three poolings leave 16x12.
    "vgg16_floor": (partial(vgg16, pool_ceil=False), (8,), [(128, 96), (131, 103)]),
    "mobilenet_v2": (MOBILENET, (16, 8), [(64, 128)]),
    "mobilenet_v2_same": (partial(MOBILENET, padding="same"), (8,), [(64, 128)]),
    "mobilenet_v2_end": (partial(MOBILENET, padding="end"), (8,), [(64, 128)]),
    "mobilenet_v3": (partial(mobilenet_v3, "small"), (16,), [(97, 129)]),
    "mobilenet_v3_end": (partial(mobilenet_v3, "small", padding="end"), (16,), [(64, 128)]),
    "resnet_ceil": (partial(resnet, 50, pool_ceil=True), (8,), [(128, 96), (97, 126)]),
    "resnet_beta": (partial(resnet_beta, 50), (8,), [(64, 128), (97, 129)]),
    "resnet_beta_end": (partial(resnet_beta, 50, padding="end"), (8,), [(97, 129)]),
    "xception": (partial(xception, 41), (8,), [(64, 128), (97, 129)]),
}


@pytest.fixture(autouse=True)
def shallow(monkeypatch) -> None:
    """Fewer of the repeated units: what is dilated, and how, is the same."""
    monkeypatch.setitem(UNITS, 50, (2, 2, 2, 3))
    monkeypatch.setitem(MIDDLE_UNITS, 41, 1)


@pytest.mark.parametrize("name", CASES)
def test_the_fine_map_holds_the_coarse_one(name):
    build, output_strides, sizes = CASES[name]
    coarse = calibrate(build(), scaled(96, 96, 2), composites=name == "xception")
    for output_stride in output_strides:
        fine = with_output_stride(coarse, output_stride)
        for size in sizes:
            assert compare(coarse, fine, scaled(*size)) <= TOLERANCE
    if name == "resnet_ceil":  # also in the pooling itself
        stem = stem_of(coarse)
        assert compare(stem, with_output_stride(stem, 2), scaled(97, 126)) <= TOLERANCE
    if name == "vgg16":  # V1 left the poolings undilated and lost the classifier's values
        published = vgg16(atrous=True)
        published.set_weights(coarse.get_weights())
        x = scaled(128, 96)
        lost = np.abs(published(x)[:, ::4, ::4] - coarse(x)).max()
        assert lost > 0.1 * np.std(coarse(x))


def test_rates_of_the_published_vgg16():
    network = vgg16(atrous=True, pool_size=3)
    assert rates(network) == {f"block5_conv{index}": 2 for index in (1, 2, 3)}
    pools = [network.get_layer(f"block{block}_pool") for block in range(1, 6)]
    assert [pool.strides[0] for pool in pools] == [2, 2, 2, 1, 1]
    assert {pool.pool_size for pool in pools} == {(3, 3)}


def test_multi_grid_dilates_the_last_three_units_only():
    wide = resnet(50, multi_grid=(2, 3, 4), stride_on="1x1")
    assert rates(wide) == {f"stage4_unit{n}_2_conv": n + 1 for n in (1, 2, 3)}


def test_rates_of_the_beta_resnet_are_the_authors():
    """TF1's graph at 16: the last unit of stage 3 keeps rate 1, stage 4 has 2, 4, 8."""
    fine = with_output_stride(resnet_beta(50, multi_grid=(1, 2, 4)), 16)
    assert rates(fine) == {f"stage4_unit{unit}_2_conv": 2**unit for unit in (1, 2, 3)}
    at_8 = rates(with_output_stride(resnet_beta(50), 8))
    third = {f"stage3_unit{unit}_2_conv": 2 for unit in (1, 2)}
    assert at_8 == {**third, **{f"stage4_unit{unit}_2_conv": 4 for unit in (1, 2, 3)}}


def test_rates_of_mobilenet_v3_are_torchvisions():
    late = ("block13_depthwise_conv", "block14_depthwise_conv")
    assert rates(with_output_stride(mobilenet_v3("large"), 16)) == dict.fromkeys(late, 2)
    # torchvision dilates the convolution that lost its stride as well.
    early = mobilenet_v3("large", dilated_early=True)
    assert rates(early) == dict.fromkeys(("block12_depthwise_conv", *late), 2)
    assert geometry(early).output.stride == (16, 16)


def test_rates_of_xception_are_the_authors():
    """TF1's graph: at 16 exit block 1 keeps rate 1 and block 2 has 2; at 8 they have 2 and 4."""

    def depthwise_rates(output_stride: int, **options) -> dict[str, int]:
        fine = with_output_stride(xception(41, **options), output_stride)
        return {
            name: layer.dilation_rate[0]
            for name, layer in leaf_layers(fine).items()
            if hasattr(layer, "depthwise") and layer.dilation_rate != (1, 1)
        }

    last = [f"exit2_conv{index}" for index in (1, 2, 3)]
    before = [f"{unit}_conv{index}" for unit in ("middle1", "exit1") for index in (1, 2, 3)]
    assert depthwise_rates(8) == {**dict.fromkeys(before, 2), **dict.fromkeys(last, 4)}
    grid = depthwise_rates(16, multi_grid=(1, 2, 4))
    assert grid == dict(zip(last, (2, 4, 8), strict=True))
