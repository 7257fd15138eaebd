from __future__ import annotations

import pytest
from parity import differences, write_case

from keras_deeplab import weights

# Case -> changes of the model that must show: a case that they do not move proves nothing.
EPSILON = {"backbone_options": {"epsilon": 1e-2}}
CASES = {
    "tf1_deeplab_mobilenet_v2": (
        {"backbone_options": {"epsilon": 1e-5}},
        {"epsilon": 1e-3},
        {"align_corners": False},
        {"backbone_options": {"padding": "end"}},
    ),
    "torchvision_deeplabv3_mobilenet_v3_large": (
        {"backbone_options": {"epsilon": 1e-5}},
        {"epsilon": 1e-3},
        {"align_corners": True},
        {"backbone_options": {"padding": "end"}},
        {"backbone_options": {"dilated_early": False}},
    ),
}
LARGE_CASES = {
    "torchvision_deeplabv3_resnet50": (
        EPSILON,
        {"align_corners": True},
        {"stride_on": "1x1"},
        {"aspp_rates": (6, 12, 18)},
    ),
    "tf1_deeplab_xception65": (
        {"backbone_options": {"epsilon": 1e-5}},
        {"epsilon": 1e-3},
        {"align_corners": False},
        {"aspp_rates": (6, 12, 24)},
        {"low_level_layer": "entry2_conv1"},
    ),
    "kazuto1011_deeplabv2_resnet101": (
        EPSILON,
        {"stride_on": "3x3"},
        {"aspp_rates": (6, 10, 18, 24)},
    ),
    "torchvision_vgg16": ({"backbone_options": {"pool_size": 3}},),
}


def parametrized(cases: dict) -> list:
    slow = pytest.mark.slow if cases is LARGE_CASES else ()
    return [pytest.param(name, changes, id=name, marks=slow) for name, changes in cases.items()]


@pytest.mark.parametrize("name, changes", [*parametrized(CASES), *parametrized(LARGE_CASES)])
def test_logits_are_the_sources_and_a_mistake_shows(shared, tmp_path, name, changes, logs):
    path = write_case(shared, name, tmp_path)
    # The inputs of the cases are scaled pixels.
    model = weights.from_pretrained(path, preprocessing=None)
    assert model.transfer_report.missing_keys == ()
    assert model.transfer_report.unexpected_keys == ()
    assert "missing keys: none" in logs.text
    found = differences(model, shared, name)
    assert max(found.values()) < 1e-4, found
    for change in changes:
        wrong = weights.from_pretrained(path, preprocessing=None, **change)
        moved = differences(wrong, shared, name)
        assert max(moved.values()) > 1e-3, (change, moved)
