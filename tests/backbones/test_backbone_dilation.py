"""At a finer output stride the backbones' features hold the coarse ones, at the authors' rates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import keras
import numpy as np
import pytest
from atrous_property import TOLERANCE, compare, rates
from calibration import calibrate, scaled

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
from keras_deeplab.graph.network import all_layers

GRID = {"multi_grid": (1, 2, 4)}
MOBILENET = partial(mobilenet_v2, depth_multiplier=0.35)


def depthwise(rate: int, first: int, last: int) -> dict[str, int]:
    return {f"block{block}_depthwise_conv": rate for block in range(first, last + 1)}


def unit_rates(stages: dict[int, list[int]]) -> dict[str, int]:
    """Rates of the 3x3 convolutions of a ResNet, the first of each stage's units having rate 1."""
    return {
        f"stage{stage}_unit{unit}_2_conv": rate
        for stage, found in stages.items()
        for unit, rate in enumerate(found, 1)
        if rate > 1
    }


def xception_rates(before: int, last: tuple[int, ...]) -> dict[str, int]:
    names = [f"{unit}_conv{n}/depthwise" for unit in ("middle1", "exit1") for n in (1, 2, 3)]
    found = dict.fromkeys(names, before) if before > 1 else {}
    return found | {f"exit2_conv{n}/depthwise": rate for n, rate in enumerate(last, 1)}


@dataclass
class Case:
    """A network, by output stride the published rates of its dilated convolutions, image sizes."""

    build: Callable[..., keras.Model]
    rates: dict[int, dict[str, int] | None]
    sizes: list[tuple[int, int]] = field(default_factory=lambda: [(64, 97)])


# Padded at the end, odd maps are rounded down, and what they leave out is in the fine map.
CASES = {
    "alexnet": Case(alexnet, {4: None}, [(111, 79)]),
    "vgg16": Case(vgg16, {8: None}, [(64, 96)]),
    # Of 131x103 the first three poolings leave 16x12.
    "vgg16_floor": Case(partial(vgg16, pool_ceil=False), {8: None}, [(131, 103)]),
    # The authors' graph: expanded_conv_13 keeps rate 1, 14 to 16 have 2 at output stride 16.
    "mobilenet_v2": Case(
        MOBILENET, {16: depthwise(2, 14, 16), 8: depthwise(2, 7, 13) | depthwise(4, 14, 16)}
    ),
    "mobilenet_v2_same": Case(partial(MOBILENET, padding="same"), {8: None}, [(64, 96)]),
    "mobilenet_v2_end": Case(partial(MOBILENET, padding="end"), {8: None}, [(64, 96)]),
    "mobilenet_v3": Case(partial(mobilenet_v3, "small"), {16: depthwise(2, 9, 10)}),
    # V3, section 3.2.1: Multi_Grid (1, 2, 4) at output stride 16 has rates 2, 4, 8, the first where
    # the stride precedes the 3x3 convolution.
    "resnet": Case(
        partial(resnet, 50, stride_on="1x1", **GRID),
        {16: unit_rates({4: [2, 4, 8]}), 8: unit_rates({3: [2, 2], 4: [4, 8, 16]})},
    ),
    # torchvision's deeplabv3_resnet50 (replace_stride_with_dilation), stride on the 3x3.
    "resnet_ceil": Case(
        partial(resnet, 50, pool_ceil=True),
        {8: unit_rates({3: [1, 2], 4: [2, 4, 4]})},
        [(64, 96), (97, 126)],
    ),
    # TF1's graph at 16: the last unit of stage 3 keeps rate 1, stage 4 has 2, 4, 8.
    "resnet_beta": Case(
        partial(resnet_beta, 50, **GRID),
        {16: unit_rates({4: [2, 4, 8]}), 8: unit_rates({3: [2, 2], 4: [4, 8, 16]})},
    ),
    # TF1's graph: at 16 exit block 1 keeps rate 1 and block 2 has 2; at 8 they have 2 and 4.
    "xception": Case(
        partial(xception, 41, **GRID),
        {16: xception_rates(1, (2, 4, 8)), 8: xception_rates(2, (4, 8, 16))},
    ),
}


@pytest.fixture(autouse=True)
def shallow(monkeypatch) -> None:
    """Fewer of the repeated units: what is dilated, and how, is the same."""
    monkeypatch.setitem(UNITS, 50, (1, 1, 2, 3))
    monkeypatch.setitem(MIDDLE_UNITS, 41, 1)


def every_rate(network: keras.Model) -> dict[str, int]:
    """Also those inside composite layers."""
    return {
        path: layer.dilation_rate[0]
        for path, layer in all_layers(network).items()
        if isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D)
        and layer.dilation_rate != (1, 1)
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_fine_map_holds_the_coarse_one_at_the_published_rates(name):
    case = CASES[name]
    coarse = calibrate(case.build(), scaled(64, 64, 2), composites=name == "xception")
    for output_stride, published in case.rates.items():
        fine = with_output_stride(coarse, output_stride)
        if published is not None:
            assert every_rate(fine) == published
        for size in case.sizes if output_stride == min(case.rates) else ():
            assert compare(coarse, fine, scaled(*size)) <= TOLERANCE
    if name == "resnet_ceil":  # also in the pooling itself
        stem = keras.Model(coarse.input, coarse.get_layer("stem_pool").output)
        assert compare(stem, with_output_stride(stem, 2), scaled(97, 126)) <= TOLERANCE
    if name == "vgg16":  # V1 left the poolings undilated and lost the classifier's values
        published = vgg16(atrous=True)
        published.set_weights(coarse.get_weights())
        x = scaled(64, 96)
        lost = np.abs(published(x)[:, ::4, ::4] - coarse(x)).max()
        assert lost > 0.1 * np.std(coarse(x))


def test_rates_of_the_published_vgg16():
    network = vgg16(atrous=True, pool_size=3)
    assert rates(network) == {f"block5_conv{index}": 2 for index in (1, 2, 3)}
    pools = [network.get_layer(f"block{block}_pool") for block in range(1, 6)]
    assert [pool.strides[0] for pool in pools] == [2, 2, 2, 1, 1]
    assert {pool.pool_size for pool in pools} == {(3, 3)}


def test_torchvision_dilates_the_convolution_that_lost_its_stride_as_well():
    early = mobilenet_v3("small", dilated_early=True)
    assert every_rate(early) == depthwise(2, 8, 10)
    assert geometry(early).output.stride == (16, 16)
