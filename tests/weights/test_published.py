from __future__ import annotations

import inspect
import re
from copy import deepcopy
from urllib.parse import urlsplit

import pytest
from keras.src.applications import resnet as keras_resnet  # where Keras has its hashes

import keras_deeplab
from keras_deeplab import backbones
from keras_deeplab.weights import published
from keras_deeplab.weights.errors import WeightsError
from keras_deeplab.weights.published import PUBLISHED, find

SMALL = [entry for entry in PUBLISHED if entry.backbone.startswith("mobilenet")]
# Counted on the authors' graphs; torchvision's number less its auxiliary head.
PARAMETERS = {
    ("pascal_voc", "mobilenet_v2"): 2_113_557,
    ("pascal_voc", "mobilenet_v2, depth_multiplier 0.5"): 697_013,
    ("coco_voc", "mobilenet_v3_large"): 11_029_328 - 3_851,
}


def identity(entry) -> str:
    return f"{entry.name}-{entry.model}-{entry.network}"


def each(entries=PUBLISHED):
    return pytest.mark.parametrize("entry", entries, ids=identity)


@each()
def test_entries_are_complete(entry):
    assert entry.backbone in backbones.NAMES
    address = urlsplit(entry.url)
    assert address.scheme == "https"
    assert address.hostname
    assert re.fullmatch(r"[\w.-]+\.(tar\.gz|pth|h5)", entry.file_name)
    assert entry.url.endswith(f"/{entry.file_name}")
    if entry.file_hash is not None:
        assert re.fullmatch(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{8}", entry.file_hash)
    assert re.fullmatch(r"(Apache-2\.0|BSD-3-Clause|MIT) \(code\)", entry.licence)
    assert entry.note
    if entry.model is None:
        assert entry.name.startswith("imagenet")
        assert (entry.classes, entry.mean_iou) == (1000, None)
    else:
        assert 30 < entry.mean_iou < 90
        assert entry.classes in (19, 21, 151, 182)


@each()
def test_arguments_are_those_of_the_model(entry):
    model = getattr(keras_deeplab, entry.model or "DeepLabV3")
    inspect.signature(model).bind(entry.classes, entry.backbone, **entry.arguments)
    options = backbones.completed_options(
        entry.backbone, entry.arguments.get("backbone_options", {})
    )
    if entry.arguments.get("stride_on") or entry.arguments.get("multi_grid"):
        assert {"stride_on", "multi_grid"} <= set(options)


@each(SMALL)
def test_small_models_are_built(entry):
    model = getattr(keras_deeplab, entry.model or "DeepLabV3")
    built = model(entry.classes, entry.backbone, **deepcopy(entry.arguments))
    config = built.get_config()
    for key, value in entry.arguments.items():
        if key == "backbone_options":
            assert value.items() <= config[key].items()
        else:
            assert config[key] == value
    if (entry.name, entry.network) in PARAMETERS:
        trainable = sum(weight.shape.num_elements() for weight in built.trainable_weights)
        assert trainable == PARAMETERS[entry.name, entry.network]


def test_names_and_files_are_unique():
    assert len({identity(entry) for entry in PUBLISHED}) == len(PUBLISHED)
    assert len({entry.file_name for entry in PUBLISHED}) == len(PUBLISHED)


def test_an_entry_does_not_change_with_another():
    for index, entry in enumerate(PUBLISHED):
        assert not any(entry.arguments is other.arguments for other in PUBLISHED[:index])
        options = entry.arguments.get("backbone_options")
        for other in PUBLISHED[:index]:
            assert options is None or options is not other.arguments.get("backbone_options")


@pytest.mark.parametrize("depth", [50, 101, 152])
def test_keras_hashes_are_those_of_the_installed_keras(depth):
    entry = find("imagenet", "DeepLabV3", f"resnet{depth}")
    assert entry.file_hash == f"md5:{keras_resnet.WEIGHTS_HASHES[f'resnet{depth}'][1]}"
    assert entry.url.startswith(keras_resnet.BASE_WEIGHTS_PATH)


def test_torchvision_hashes_are_those_of_the_file_names():
    found = [entry for entry in PUBLISHED if "pytorch.org" in entry.url]
    assert len(found) == 10
    for entry in found:
        assert entry.url.endswith(f"-{entry.file_hash.removeprefix('sha256:')}.pth")


@pytest.mark.parametrize(
    "name, model, backbone, options, file",
    [
        ("pascal_voc", "DeepLabV3", "mobilenet_v2", None, "deeplabv3_mnv2_pascal_train_aug"),
        ("pascal_voc", "DeepLabV3", "mobilenet_v2", {"padding": "same"}, "deeplabv3_mnv2_pascal"),
        (
            *("pascal_voc", "DeepLabV3", "mobilenet_v2"),
            *({"depth_multiplier": 0.5}, "deeplabv3_mnv2_dm05_pascal_trainaug"),
        ),
        (
            *("pascal_voc", "DeepLabV3", "mobilenet_v2"),
            *({"depth_multiplier": None}, "deeplabv3_mnv2_pascal_train_aug"),
        ),
        ("pascal_voc", "DeepLabV3Plus", "xception65", None, "deeplabv3_pascal_train_aug"),
        ("pascal_voc", "DeepLabV2", "resnet101", None, "deeplabv2_resnet101_msc-vocaug"),
        ("coco_voc", "DeepLabV3", "resnet101", None, "deeplabv3_resnet101_coco-586e9e4e"),
        ("ade20k", "DeepLabV3Plus", "mobilenet_v2", None, "deeplabv3_mnv2_ade20k_train"),
        ("imagenet", "UNet", "vgg16", None, "vgg16_weights"),
        ("imagenet_torchvision", "DeepLabV3Plus", "resnet50", None, "resnet50-0676ba61"),
    ],
)
def test_find(name, model, backbone, options, file):
    entry = find(name, model, backbone, options)
    assert entry.file_name.startswith(file)
    assert entry.name == name


def test_find_lists_what_there_is():
    with pytest.raises(WeightsError) as caught:
        find("cityscape", "DeepLabV3", "mobilenet_v2")
    assert str(caught.value) == (
        "cityscape: no such weights are published for DeepLabV3 on mobilenet_v2; there are: "
        "'pascal_voc', 'pascal_voc_trainval', 'cityscapes', 'imagenet'"
    )


def test_find_says_where_a_name_is():
    with pytest.raises(WeightsError) as caught:
        find("cityscapes", "DeepLabV3", "mobilenet_v2", {"depth_multiplier": 0.5})
    assert str(caught.value) == (
        "cityscapes: no such weights are published for DeepLabV3 on mobilenet_v2, "
        "depth_multiplier 0.5; there are: 'pascal_voc', 'pascal_voc_trainval', 'imagenet'. "
        "'cityscapes' is there for DeepLabV3 on mobilenet_v2; DeepLabV3Plus on xception65"
    )
    with pytest.raises(WeightsError, match="there are: none. 'imagenet' is there for any model"):
        find("imagenet", "DeepLabV3", "alexnet")


def test_table_and_markdown_have_a_row_for_each():
    rows = published.table()
    assert len(rows) == len(PUBLISHED)
    assert rows[0] == {
        "weights": "pascal_voc",
        "model": "DeepLabV3",
        "backbone": "mobilenet_v2",
        "classes": 21,
        "mean IoU": "75.32",
        "measured on": "val, stride 16, one scale",
        "licence": "Apache-2.0 (code)",
        "file": "https://download.tensorflow.org/models/"
        "deeplabv3_mnv2_pascal_train_aug_2018_01_29.tar.gz",
    }
    lines = published.markdown().splitlines()
    assert lines[0].startswith("| weights | model | backbone | classes | mean IoU |")
    assert len(lines) == len(PUBLISHED) + 2
    assert {line.count("|") for line in lines} == {9}
    vgg16 = [line for line in lines if "| any | vgg16 | 1000 |  | ImageNet |" in line]
    assert [line.split()[1] for line in vgg16] == ["imagenet_torchvision", "imagenet"]
    for line, entry in zip(lines[2:], PUBLISHED, strict=True):
        assert line.endswith(f"| [file]({entry.url}) |")
