from __future__ import annotations

from functools import cache

import keras
import pytest
from atrous_property import TOLERANCE, compare, rates
from calibration import calibrate, image

from keras_deeplab.backbones import xception
from keras_deeplab.graph import geometry, with_output_stride
from keras_deeplab.graph.network import leaf_layers


@cache
def network(depth: int) -> keras.Model:
    return xception(depth)


def field_of(strides: list[int]) -> int:
    """The field of a chain of 3x3 convolutions with these strides."""
    field, step = 1, 1
    for stride in strides:
        field += 2 * step
        step *= stride
    return field


@pytest.mark.parametrize(
    "depth, entry, middle",
    [
        (41, (2, 2, 2), 8),
        pytest.param(65, (2, 2, 2), 16, marks=pytest.mark.slow),
        pytest.param(71, (2, 1, 2, 1, 2), 16, marks=pytest.mark.slow),
    ],
)
def test_strides_and_fields_follow_from_the_figure(depth, entry, middle):
    found = geometry(network(depth), 513, 321)
    units = [*entry, *[1] * middle, 2, 1]
    strides = [2, 1] + [stride for unit in units for stride in (1, 1, unit)]
    assert found.output.stride == (32, 32)
    assert found.output.size == (17, 11)
    assert found.output.offset == (0, 0)
    assert found.output.receptive_field == (field_of(strides),) * 2
    low = found["entry3_conv2" if depth == 71 else "entry2_conv2"]
    assert low.stride == (4, 4)


def depthwise_rates(output_stride: int, **options) -> dict[str, int]:
    fine = with_output_stride(xception(41, **options), output_stride)
    return {
        name: layer.dilation_rate[0]
        for name, layer in leaf_layers(fine).items()
        if hasattr(layer, "depthwise") and layer.dilation_rate != (1, 1)
    }


def test_rates_are_the_authors():
    """TF1's graph: at 16 exit block 1 keeps rate 1 and block 2 has 2; at 8 they have 2 and 4."""
    last = [f"exit2_conv{index}" for index in (1, 2, 3)]
    assert depthwise_rates(16) == dict.fromkeys(last, 2)
    at_8 = depthwise_rates(8)
    middle = [f"middle{unit}_conv{index}" for unit in range(1, 9) for index in (1, 2, 3)]
    exit1 = [f"exit1_conv{index}" for index in (1, 2, 3)]
    assert at_8 == {**dict.fromkeys([*middle, *exit1], 2), **dict.fromkeys(last, 4)}
    grid = depthwise_rates(16, multi_grid=(1, 2, 4))
    assert grid == dict(zip(last, (2, 4, 8), strict=True))
    assert rates(network(41)) == {}


@pytest.mark.slow
@pytest.mark.parametrize("output_stride", [16, 8])
def test_the_fine_map_holds_the_coarse_one(output_stride):
    coarse = calibrate(xception(41), (image(97, 97, 2) - 128) / 64, composites=True)
    fine = with_output_stride(coarse, output_stride)
    for size in ((64, 128), (97, 129)):
        assert compare(coarse, fine, (image(*size) - 128) / 64) <= TOLERANCE


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="`depth` must be one of .* Received: depth=50"):
        xception(50)
    with pytest.raises(ValueError, match=r"`multi_grid` must be a list of 3.*\(1, 2\)"):
        xception(41, multi_grid=(1, 2))
