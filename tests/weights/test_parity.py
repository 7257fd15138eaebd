"""The logits of the public implementations, for seeded weights in files as those write them."""

from __future__ import annotations

import pytest
from models.networks import zero_kernels
from parity import differences, write_case

from keras_deeplab import weights

pytestmark = pytest.mark.slow

# Case -> changes of the model that must show: a case that they do not move proves nothing.
CASES = {
    "tf1_deeplab_mobilenet_v2": ({"align_corners": False},),
    "torchvision_deeplabv3_mobilenet_v3_large": ({"align_corners": True},),
    "torchvision_deeplabv3_resnet50": ({"stride_on": "1x1"}, {"aspp_rates": (6, 12, 18)}),
    "tf1_deeplab_xception65": ({"epsilon": 1e-3}, {"low_level_layer": "entry2_conv1"}),
    "kazuto1011_deeplabv2_resnet101": ({"stride_on": "3x3"},),
    "torchvision_vgg16": ({"backbone_options": {"pool_size": 3}},),
}


@pytest.mark.parametrize("name, changes", CASES.items(), ids=CASES)
def test_logits_are_the_sources_and_a_mistake_shows(shared, tmp_path, name, changes, logs):
    path = write_case(shared, name, tmp_path)
    # The inputs of the cases are scaled pixels.
    with zero_kernels():  # which the file replaces
        model = weights.from_pretrained(path, preprocessing=None)
    assert model.transfer_report.missing_keys == ()
    assert model.transfer_report.unexpected_keys == ()
    assert "missing keys: none" in logs.text
    found = differences(model, shared, name)
    assert max(found.values()) < 1e-4, found
    for change in changes:
        with zero_kernels():
            wrong = weights.from_pretrained(path, preprocessing=None, **change)
        moved = differences(wrong, shared, name)
        assert max(moved.values()) > 1e-3, (change, moved)
