"""The registry of published weights."""

from __future__ import annotations

import re

import pytest
from keras.src.applications import resnet as keras_resnet  # where Keras has its hashes

import keras_deeplab
from keras_deeplab import backbones, weights
from keras_deeplab.weights import PUBLISHED, WeightsError
from keras_deeplab.weights.published import find_published

HALF = {"depth_multiplier": 0.5}


def test_entries_are_complete():
    for entry in PUBLISHED:
        assert entry.backbone in backbones.NAMES
        assert re.fullmatch(r"https://[\w.-]+/[\w./-]+/[\w.-]+\.(tar\.gz|pth|h5)", entry.url)
        assert entry.file_hash is None or re.fullmatch(
            r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{8}", entry.file_hash
        )
        assert re.fullmatch(r"(Apache-2\.0|BSD-3-Clause|MIT) \(code\)", entry.license)
        assert entry.note
        if entry.model is None:
            assert entry.name.startswith("imagenet")
            assert (entry.classes, entry.mean_iou) == (1000, None)
        else:
            assert hasattr(keras_deeplab, entry.model)
            assert 30 < entry.mean_iou < 90
            assert entry.classes in (19, 21, 151, 182)
        if entry.width != 1:
            assert re.search(rf"_dm0{10 * entry.width:.0f}_|_{entry.width}_224_", entry.file_name)


def test_names_and_files_are_unique():
    assert len({(e.name, e.network) for e in PUBLISHED}) == len(PUBLISHED) == 36
    assert len({entry.file_name for entry in PUBLISHED}) == len(PUBLISHED)


def test_hashes_are_the_publishers():
    for depth in (50, 101, 152):
        entry = find_published("imagenet", "DeepLabV3", f"resnet{depth}")
        assert entry.file_hash == f"md5:{keras_resnet.WEIGHTS_HASHES[f'resnet{depth}'][1]}"
        assert entry.url.startswith(keras_resnet.BASE_WEIGHTS_PATH)
    found = [entry for entry in PUBLISHED if "pytorch.org" in entry.url]
    assert len(found) == 13
    for entry in found:
        assert entry.url.endswith(f"-{entry.file_hash.removeprefix('sha256:')}.pth")


@pytest.mark.parametrize(
    "name, model, backbone, options, file",
    [
        ("pascal_voc", "DeepLabV3", "mobilenet_v2", {"padding": "same"}, "deeplabv3_mnv2_pascal"),
        ("pascal_voc", "DeepLabV3", "mobilenet_v2", HALF, "deeplabv3_mnv2_dm05_pascal_trainaug"),
        ("pascal_voc", "DeepLabV2", "resnet101", None, "deeplabv2_resnet101_msc-vocaug"),
        ("imagenet_torchvision", "DeepLabV3Plus", "resnet50", None, "resnet50-0676ba61"),
        ("imagenet_torchvision", "UNet", "mobilenet_v3_small", None, "mobilenet_v3_small-0"),
        ("imagenet_torchvision_v2", "DeepLabV3", "mobilenet_v3_large", None, "mobilenet_v3_l"),
    ],
)
def test_find(name, model, backbone, options, file):
    entry = find_published(name, model, backbone, options)
    assert entry.file_name.startswith(file)
    assert entry.name == name


def test_find_lists_what_there_is():
    with pytest.raises(WeightsError) as caught:
        find_published("cityscapes", "DeepLabV3", "mobilenet_v2", HALF)
    assert str(caught.value) == (
        "cityscapes: no such weights are published for DeepLabV3 on mobilenet_v2, "
        "depth_multiplier 0.5; there are: 'pascal_voc', 'pascal_voc_trainval', 'imagenet'. "
        "'cityscapes' is there for DeepLabV3 on mobilenet_v2; DeepLabV3Plus on xception65"
    )


def test_table_and_markdown_have_a_row_for_each():
    rows = weights.list()
    assert [row["file"] for row in rows] == [entry.url for entry in PUBLISHED]
    assert rows[0] == {
        "weights": "pascal_voc",
        "model": "DeepLabV3",
        "backbone": "mobilenet_v2",
        "classes": 21,
        "mean IoU": "75.32",
        "measured on": "val, stride 16, one scale",
        "license": "Apache-2.0 (code)",
        "file": "https://download.tensorflow.org/models/"
        "deeplabv3_mnv2_pascal_train_aug_2018_01_29.tar.gz",
    }
    # The whole table is in docs/weights.md, see training/model_table.py.
    line = weights.markdown().splitlines()[2]
    assert line.startswith("| pascal_voc | DeepLabV3 | mobilenet_v2 | 21 | 75.32 | val, ")
    assert line.endswith(f"| [file]({rows[0]['file']}) |")
