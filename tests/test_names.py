from __future__ import annotations

import pytest

from keras_deeplab import backbones, names, recipes


@pytest.mark.parametrize(
    "spelling, name",
    [
        ("ResNet50", "resnet50"),
        ("RESNET-101-beta", "resnet101_beta"),
        ("MobileNet-V2", "mobilenet_v2"),
        ("Xception 65", "xception65"),
        ("resnet51", None),
        ("", None),
    ],
)
def test_spellings_of_a_backbone(spelling, name):
    assert names.match(spelling, backbones.NAMES) == name


@pytest.mark.parametrize("spelling", ["DeepLabV3+", "deeplabv3plus", "DeepLab_v3_Plus"])
def test_a_plus_is_part_of_a_name(spelling):
    assert names.match(spelling, ["deeplab_v3", "deeplab_v3_plus"]) == "deeplab_v3_plus"


def test_no_two_names_share_their_spellings():
    for known in (backbones.NAMES, recipes.RECIPES):
        assert len({names.key(name) for name in known}) == len(known)


def test_unknown_names_come_with_the_closest_one():
    with pytest.raises(ValueError, match=r"'ResNet50'\. Did you mean 'resnet50'\?"):
        backbones.get("ResNet50")
    with pytest.raises(ValueError, match=r"'V3\+'\. Did you mean 'v3_plus'\?"):
        recipes.get("V3+")
    with pytest.raises(ValueError, match=r"'zzz'\.?$"):
        backbones.get("zzz")


def test_printable_names_have_no_escape_sequences():
    text = "caf\u00e9 cafe\u0301 \u5929\u6c17 \u0645\u0631\u062d\u0628\u0627 C:\\x"
    assert names.printable(text) == text
    joined = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 1.23\u202fPM\u3000\u200d"
    assert names.printable(joined) == joined
    assert names.printable("\x1b[31m\n\u202e\udce9") == r"\x1b[31m\n\u202e\udce9"
    assert len(names.printable("a" * 2000)) == 1000
