from __future__ import annotations

import pytest
from atrous_property import TOLERANCE, compare, rates
from calibration import calibrate, image

from keras_deeplab.backbones import resnet, resnet_beta
from keras_deeplab.graph import geometry, with_output_stride


def test_the_stem_sees_four_pixels_more():
    """Three 3x3 convolutions see 11 pixels where the 7x7 sees 7; the rest is the same."""
    assert geometry(resnet(50, stride_on="1x1")).output.receptive_field == (483, 483)
    found = geometry(resnet_beta(50), 513, 225)
    assert found.output.receptive_field == (487, 487)
    assert found.output.size == (17, 8)
    assert found["stage1_unit2_3_norm"].stride == (4, 4)
    # The stride is in a stage's last unit.
    assert found["stage1_unit2_out"].stride == (4, 4)
    assert found["stage1_unit3_out"].stride == (8, 8)
    assert found["stage3_unit6_out"].stride == (32, 32)


def test_rates_are_the_authors():
    """TF1's graph at 16: the last unit of stage 3 keeps rate 1, stage 4 has 2, 4, 8."""
    fine = with_output_stride(resnet_beta(50, multi_grid=(1, 2, 4)), 16)
    assert rates(fine) == {f"stage4_unit{unit}_2_conv": 2**unit for unit in (1, 2, 3)}
    at_8 = rates(with_output_stride(resnet_beta(50), 8))
    third = {f"stage3_unit{unit}_2_conv": 2 for unit in range(1, 7)}
    assert at_8 == {**third, **{f"stage4_unit{unit}_2_conv": 4 for unit in (1, 2, 3)}}


@pytest.mark.slow
@pytest.mark.parametrize("padding", ["same", "symmetric", "end"])
def test_the_fine_map_holds_the_coarse_one(padding):
    coarse = calibrate(resnet_beta(50, padding=padding), (image(97, 97, 2) - 128) / 64)
    for output_stride in (16, 8):
        fine = with_output_stride(coarse, output_stride)
        for size in ((64, 128), (97, 129)):
            assert compare(coarse, fine, (image(*size) - 128) / 64) <= TOLERANCE


def test_padding_of_the_pooling():
    assert geometry(resnet_beta(50, padding="symmetric")).output.offset == (0, 0)
    assert geometry(resnet_beta(50, padding="end"), 64, 62).output.offset == (2, 2)
    assert geometry(resnet_beta(50)).output.offset == (None, None)
    assert geometry(resnet_beta(50), 513, 512).output.offset == (0, 2)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="`depth` must be one of .* Received: depth=152"):
        resnet_beta(152)
    with pytest.raises(ValueError, match="`padding` must be one of .* Received: padding='valid'"):
        resnet_beta(50, padding="valid")
