from __future__ import annotations

import pytest

import keras_deeplab
from keras_deeplab import backbones, names, recipes


@pytest.mark.parametrize(
    "spelling, name",
    [
        ("ResNet50", "resnet50"),
        ("RESNET-101-beta", "resnet101_beta"),
        ("mobilenetv2", "mobilenet_v2"),
        ("MobileNet-V2", "mobilenet_v2"),
        ("MobileNetV3Large", "mobilenet_v3_large"),
        ("Xception 65", "xception65"),
        ("resnet51", None),
        ("", None),
    ],
)
def test_spellings_of_a_backbone(spelling, name):
    assert names.match(spelling, backbones.NAMES) == name


@pytest.mark.parametrize("spelling", ["DeepLabV3+", "deeplabv3plus", "DeepLab_v3_Plus"])
def test_a_plus_is_part_of_a_name(spelling):
    models = ["deeplab_v3", "deeplab_v3_plus"]
    assert names.match(spelling, models) == "deeplab_v3_plus"
    assert names.match(spelling.rstrip("+").removesuffix("plus").removesuffix("_Plus"), models)


def test_no_two_names_share_their_spellings():
    for known in (backbones.NAMES, recipes.RECIPES):
        assert len({names.key(name) for name in known}) == len(known)


def test_unknown_names_come_with_the_closest_one():
    with pytest.raises(ValueError, match=r"received 'ResNet50'\. Did you mean 'resnet50'\?"):
        backbones.find("ResNet50")
    with pytest.raises(ValueError, match=r"Did you mean 'xception65'\?"):
        keras_deeplab.DeepLabV3Plus(3, "xception-66")
    with pytest.raises(ValueError, match=r"received 'V3\+'\. Did you mean 'v3_plus'\?"):
        recipes.find("V3+")
    with pytest.raises(ValueError, match=r"received 'zzz'\.$"):
        backbones.find("zzz")
