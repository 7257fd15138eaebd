"""The networks of keras.applications: exact output stride, taps, rates and smallest image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import pytest
from atrous_property import TOLERANCE, compare, rates
from calibration import calibrate, image
from keras.src.applications.convnext import ConvNeXt
from keras.src.applications.densenet import DenseNet

from keras_deeplab.graph import find_feature_tap, geometry, minimum_size, with_output_stride


@dataclass
class Family:
    """A network and what is known about it."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    scales: bool = False  # the network itself takes 0..255
    taps: dict[int, str] = field(default_factory=dict)  # last tensor at a stride
    field: int | None = None  # receptive field of the output
    minimum: int | None = None
    rates: dict[str, int] | None = None  # at output stride 8

    def pixels(self, height: int, width: int, batch: int = 1) -> np.ndarray:
        x = image(height, width, batch)
        return x if self.scales else (x - 128) / 64


# Of the exit flow the unit whose pooling lost its stride has the rate before it, the last two
# convolutions twice that.
XCEPTION_RATES = {f"block{block}_sepconv{n}": 2 for block in range(5, 14) for n in (1, 2, 3)}
del XCEPTION_RATES["block13_sepconv3"]
XCEPTION_RATES |= {"block13_pool": 2, "block14_sepconv1": 4, "block14_sepconv2": 4}
FAMILIES = [
    Family("VGG16", taps={4: "block3_conv3", 8: "block4_conv3"}, field=212, minimum=32),
    Family("ResNet50", taps={4: "conv2_block3_out"}, field=483),
    Family("MobileNetV2", {"alpha": 0.35}, taps={4: "block_3_expand_relu"}, minimum=31),
    Family("MobileNetV3Small", scales=True),
    Family("EfficientNetB0", scales=True, taps={4: "block3a_expand_activation"}),
    Family("Xception", minimum=7, rates=XCEPTION_RATES),
    Family("DenseNet", {"blocks": [2, 3, 4, 2]}, taps={4: "pool2_conv"}, minimum=29),
    Family("ConvNeXt", {"depths": [1, 1, 3, 1], "projection_dims": [8, 16, 32, 64]}, scales=True),
]
# The functions behind DenseNet121 and ConvNeXtTiny, which are large, also build small ones.
BUILDERS = {**vars(keras.applications), "DenseNet": DenseNet, "ConvNeXt": ConvNeXt}
BY_NAME = {family.name: family for family in FAMILIES}


@pytest.fixture(scope="module")
def network(request) -> tuple[Family, keras.Model, keras.Model]:
    """A family, its network, and that at output stride 8."""
    family = BY_NAME[request.param]
    options = {"include_top": False, "weights": None, "input_shape": (None, None, 3)}
    coarse = BUILDERS[family.name](**options, **family.options)
    calibrate(coarse, family.pixels(64, 64, batch=2))
    return family, coarse, with_output_stride(coarse, 8)


@pytest.mark.slow
@pytest.mark.parametrize("network", BY_NAME, indirect=True)
def test_the_dense_map_holds_the_coarse_one(network):
    family, coarse, dense = network
    assert dense.output_shape == coarse.output_shape
    assert family.rates in (None, rates(dense))
    # An even and an odd size, whose maps every removed stride divides.
    assert compare(coarse, dense, family.pixels(64, 97)) <= TOLERANCE
    # Of any size the output has that of the map at the cap.
    at_cap = geometry(coarse, 57, 75)[find_feature_tap(coarse, 8)]
    assert geometry(dense, 57, 75).output.size == at_cap.size
    for stride, layer in family.taps.items():
        assert find_feature_tap(coarse, stride) == layer
        assert geometry(coarse)[layer].stride == (stride, stride)
    if family.field is not None:
        assert geometry(coarse).output.stride == (32, 32)
        assert geometry(coarse).output.receptive_field == (family.field, family.field)


@pytest.mark.slow
@pytest.mark.parametrize("network", [f.name for f in FAMILIES if f.minimum], indirect=True)
def test_the_minimum_size_works_and_one_pixel_less_does_not(network):
    family, model, _ = network
    size = family.minimum
    assert minimum_size(model) == (size, size)
    smallest = model(family.pixels(size, size))
    assert min(smallest.shape) >= 1
    assert geometry(model, size, size).output.size == smallest.shape[1:3]
    with pytest.raises(ValueError, match="too small"):
        geometry(model, size - 1, size)


@pytest.mark.parametrize("network", ["DenseNet"], indirect=True)
def test_no_pooling_of_a_fine_network_meets_padding_alone_from_the_minimum_size_on(network):
    _, _, fine = network
    # The last pooling has 2 taps at rate 2. 13 pixels are a map of 7, 4 and, rounded down, 2.
    assert minimum_size(fine) == (13, 13)
    assert np.isfinite(fine(image(13, 13) / 255)).all()
    for size in (5, 12):
        with pytest.raises(ValueError, match="'pool4_pool' has taps 2 .* map of 1.* too small"):
            geometry(fine, size, 40)
    assert np.isnan(fine(image(12, 13) / 255)).any(), "the rule is not needed"


@pytest.mark.parametrize("network", ["ConvNeXt"], indirect=True)
def test_impossible_strides_list_the_possible_ones(network):
    for stride in (2, 64, 0, -8, 16.5, True, "16"):
        with pytest.raises(ValueError, match=r"\[1, 4, 8, 16, 32\]"):
            with_output_stride(network[1], stride)
