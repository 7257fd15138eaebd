"""Weights that others have published for networks of this package."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from keras_deeplab.weights.errors import WeightsError

_WIDTH = "depth_multiplier"
# Model, backbone, arguments.
_Network = tuple[str | None, str, dict[str, Any]]


@dataclass(frozen=True)
class Published:
    """One file of weights, as its publisher describes it.

    Attributes:
        name: The name that users give, such as "pascal_voc".
        model: Name of the model's class, None for a backbone alone, which fits any model.
        backbone: A name of `keras_deeplab.backbones`.
        arguments: Those of the model, besides classes and backbone, that make it the publisher's
            network; for a backbone alone, as arguments of DeepLabV3.
        url: Address of the file.
        file_hash: As `download.fetch` takes it, None where the publisher gives none.
        licence: Of the publisher's code; none is stated for the files themselves.
        classes: Number of classes that it was trained for.
        mean_iou: In percent, as the publisher gives it, None for a backbone alone.
        note: What was measured, and further facts.
    """

    name: str
    model: str | None
    backbone: str
    arguments: dict[str, Any] = field(hash=False)
    url: str
    file_hash: str | None
    licence: str
    classes: int
    mean_iou: float | None
    note: str

    @property
    def network(self) -> str:
        """The backbone, with its width where that is not 1, as files differ in it."""
        return _network(self.backbone, self.arguments.get("backbone_options"))

    @property
    def file_name(self) -> str:
        """The name of the file, by its address."""
        return self.url.rpartition("/")[2]


def _network(backbone: str, options: Mapping[str, Any] | None) -> str:
    width = (options or {}).get(_WIDTH) or 1
    return backbone if width == 1 else f"{backbone}, {_WIDTH} {width:g}"


# The authors' networks. Addresses, figures and architectures: tensorflow/models (commit d318246c),
# research/deeplab/g3doc/model_zoo.md, which has http for the same host and no hashes; classes:
# research/deeplab/datasets/data_generator.py; padding and resizing: the graphs its code builds.
# Left out, as no model here is like them: xception71_dpc_* (dense prediction cell), mobilenetv3_*
# and EdgeTPU-DeepLab (other heads and networks), *_8bit (trained to be quantised).
def _zoo(name: str, network: _Network, classes: int, iou: float, note: str, file: str) -> Published:
    url = f"https://download.tensorflow.org/models/{file}.tar.gz"
    network = deepcopy(network)
    network[2]["align_corners"] = True
    return Published(name, *network, url, None, "Apache-2.0 (code)", classes, iou, note)


def _mobilenet(width: float, **head: Any) -> dict[str, Any]:
    return {"aspp_rates": (), **head, "backbone_options": {_WIDTH: width, "padding": "same"}}


# "MobileNet-v2 based models do not employ ASPP and decoder modules", but for ADE20K "we also
# include the decoder module in the MobileNet-v2 checkpoint".
_MOBILE: _Network = ("DeepLabV3", "mobilenet_v2", _mobilenet(1.0, head_filters=None))
_MOBILE_05: _Network = ("DeepLabV3", "mobilenet_v2", _mobilenet(0.5, head_filters=None))
_MOBILE_DECODER: _Network = ("DeepLabV3Plus", "mobilenet_v2", _mobilenet(1.0, separable=True))
_XCEPTION: _Network = ("DeepLabV3Plus", "xception65", {"separable": True})

_VAL = "val, stride 16, one scale"
_TEST = "test, stride 8, one scale"
_TEST_MANY = "test, stride 8, scales 0.5 to 1.75, flips"
# The unlabelled class is one of the 151.
_ADE = "val, stride 16, one scale, longest side 257; class 0 is not trained"
_ADE_MANY = "val, stride 8, scales 0.5 to 1.75, flips, longest side 513; class 0 is not trained"
_AUG, _TRAINVAL = "pascal_voc", "pascal_voc_trainval"
_ZOO = (
    _zoo(_AUG, _MOBILE, 21, 75.32, _VAL, "deeplabv3_mnv2_pascal_train_aug_2018_01_29"),
    _zoo(_AUG, _MOBILE_05, 21, 70.19, _VAL, "deeplabv3_mnv2_dm05_pascal_trainaug_2018_10_01"),
    _zoo(_AUG, _XCEPTION, 21, 82.20, _VAL, "deeplabv3_pascal_train_aug_2018_01_04"),
    _zoo(_TRAINVAL, _MOBILE, 21, 80.25, _TEST_MANY, "deeplabv3_mnv2_pascal_trainval_2018_01_29"),
    _zoo(_TRAINVAL, _MOBILE_05, 21, 71.83, _TEST, "deeplabv3_mnv2_dm05_pascal_trainval_2018_10_01"),
    _zoo(_TRAINVAL, _XCEPTION, 21, 87.80, _TEST_MANY, "deeplabv3_pascal_trainval_2018_01_04"),
    _zoo("cityscapes", _MOBILE, 19, 70.71, _VAL, "deeplabv3_mnv2_cityscapes_train_2018_02_05"),
    _zoo("cityscapes", _XCEPTION, 19, 78.79, _VAL, "deeplabv3_cityscapes_train_2018_02_06"),
    _zoo("ade20k", _MOBILE_DECODER, 151, 32.04, _ADE, "deeplabv3_mnv2_ade20k_train_2018_12_03"),
    _zoo("ade20k", _XCEPTION, 151, 45.65, _ADE_MANY, "deeplabv3_xception_ade20k_train_2018_05_29"),
)


# torchvision: models/segmentation/deeplabv3.py (commit 0289e3fe) for figures, rates and strides;
# resnet.py and vgg.py, as copied in other repositories, for the backbones' addresses. An address'
# last eight digits begin the file's SHA-256. Its DeepLabV3 starts from IMAGENET1K_V1; the resnets
# have a V2 too, of another recipe.
def _torchvision(name: str, network: _Network, file: str, *facts: Any) -> Published:
    url, file_hash = f"https://download.pytorch.org/models/{file}.pth", f"sha256:{file[-8:]}"
    return Published(name, *deepcopy(network), url, file_hash, "BSD-3-Clause (code)", *facts)


# Caffe rounds the size of a pooled map up.
_VGG_OPTIONS = {"backbone_options": {"pool_ceil": False}}


def _imagenet(version: str, backbone: str, file: str) -> Published:
    arguments = {"stride_on": "3x3"} if backbone != "vgg16" else _VGG_OPTIONS
    arguments = {"preprocessing": "torch", **arguments}
    name = f"imagenet_torchvision{version}"
    return _torchvision(name, (None, backbone, arguments), file, 1000, None, "ImageNet")


_COCO = "COCO val2017 with VOC's labels, stride"
_RATES = {"aspp_rates": (12, 24, 36)}
_AT_8 = {"output_stride": 8, **_RATES, "multi_grid": (1, 1, 1)}
_AT_16 = {"output_stride": 16, **_RATES, "backbone_options": {"dilated_early": True}}
_RESNET50: _Network = ("DeepLabV3", "resnet50", _AT_8)
_RESNET101: _Network = ("DeepLabV3", "resnet101", _AT_8)
_LARGE: _Network = ("DeepLabV3", "mobilenet_v3_large", _AT_16)
_LARGE_FILE = "deeplabv3_mobilenet_v3_large-fc3c493d"
_TORCHVISION = (
    _torchvision("coco_voc", _RESNET50, "deeplabv3_resnet50_coco-cd0a2569", 21, 66.4, f"{_COCO} 8"),
    _torchvision(
        "coco_voc", _RESNET101, "deeplabv3_resnet101_coco-586e9e4e", 21, 67.4, f"{_COCO} 8"
    ),
    _torchvision("coco_voc", _LARGE, _LARGE_FILE, 21, 60.3, f"{_COCO} 16"),
    _imagenet("", "resnet50", "resnet50-0676ba61"),
    _imagenet("", "resnet101", "resnet101-63fe2227"),
    _imagenet("", "resnet152", "resnet152-394f9c45"),
    _imagenet("", "vgg16", "vgg16-397923af"),
    _imagenet("_v2", "resnet50", "resnet50-11ad3fa6"),
    _imagenet("_v2", "resnet101", "resnet101-cd907fc2"),
    _imagenet("_v2", "resnet152", "resnet152-f82ba261"),
)


# keras.applications (Keras 3.15), resnet.py, vgg16.py and mobilenet_v2.py, which has no hashes.
def _keras(backbone: str, arguments: dict[str, Any], file: str, md5: str | None) -> Published:
    url = f"https://storage.googleapis.com/tensorflow/keras-applications/{file}.h5"
    facts = (url, md5 and f"md5:{md5}", "Apache-2.0 (code)", 1000, None, "ImageNet")
    return Published("imagenet", None, backbone, arguments, *facts)


def _keras_resnet(depth: int, md5: str) -> Published:
    options = {"epsilon": 1.001e-5}
    arguments = {"stride_on": "1x1", "preprocessing": "caffe", "backbone_options": options}
    return _keras(f"resnet{depth}", arguments, f"resnet/resnet{depth}_{_WEIGHTS}_notop", md5)


_WEIGHTS = "weights_tf_dim_ordering_tf_kernels"


def _keras_mobilenet(width: float) -> Published:
    # At other widths Keras rounds channels in another way than DeepLab.
    options = {_WIDTH: width, "padding": "end", **({"divisible_by": 8} if width != 1 else {})}
    file = f"mobilenet_v2/mobilenet_v2_{_WEIGHTS}_{width}_224_no_top"
    return _keras("mobilenet_v2", {"backbone_options": options}, file, None)


_KERAS = (
    _keras_resnet(50, "4d473c1dd8becc155b73f8504c6f6626"),
    _keras_resnet(101, "88cf7a10940856eca736dc7b7e228a21"),
    _keras_resnet(152, "ee4c566cf9a93f14d82f913c2dc6dd0c"),
    _keras(
        "vgg16",
        {"preprocessing": "caffe", **_VGG_OPTIONS},
        f"vgg16/vgg16_{_WEIGHTS}_notop",
        "6d6bbae143d832006294945121d1f1fc",
    ),
    *(_keras_mobilenet(width) for width in (1.0, 0.35, 0.5, 0.75, 1.3, 1.4)),
)


# kazuto1011/deeplab-pytorch, README.md, configs/*.yaml and libs/models: no hashes.
def _kazuto1011(name: str, classes: int, iou: float, file: str, measured: str) -> Published:
    url = "https://github.com/kazuto1011/deeplab-pytorch/releases/download/v1.0/"
    url += f"deeplabv2_resnet101_msc-{file}.pth"
    arguments = {
        "stride_on": "1x1",
        "align_corners": False,
        "preprocessing": "caffe_deeplab",
        "backbone_options": {"pool_ceil": True},
    }
    note = f"{measured}, MultiScale at 0.5, 0.75 and 1, no CRF"
    facts = (url, None, "MIT (code)", classes, iou, note)
    return Published(name, "DeepLabV2", "resnet101", arguments, *facts)


_KAZUTO1011 = (
    _kazuto1011("pascal_voc", 21, 76.65, "vocaug-20000", "val"),
    _kazuto1011("coco_stuff_10k", 182, 34.8, "cocostuff10k-20000", "10k val, images 513x513"),
    _kazuto1011("coco_stuff_164k", 182, 39.1, "cocostuff164k-100000", "164k val"),
)

PUBLISHED: tuple[Published, ...] = (*_ZOO, *_TORCHVISION, *_KAZUTO1011, *_KERAS)


def find(
    name: str, model: str | None, backbone: str, options: Mapping[str, Any] | None = None
) -> Published:
    """Returns the published weights of a name for a model.

    Args:
        name: Such as "pascal_voc".
        model: Name of the model's class, such as "DeepLabV3", None for any.
        backbone: A name of `keras_deeplab.backbones`.
        options: The model's `backbone_options`. Only the depth multiplier selects the file; the
            publisher's other options are in `arguments`.

    Returns:
        The entry of `PUBLISHED`.

    Raises:
        WeightsError: If there are no such weights; the error lists the published ones.
    """
    network = _network(backbone, options)
    fitting = {
        entry.name: entry
        for entry in PUBLISHED
        if (model is None or entry.model in (None, model)) and entry.network == network
    }
    if name in fitting:
        return fitting[name]
    reason = f"no such weights are published for {model or 'any model'} on {network}; there are: "
    reason += ", ".join(map(repr, fitting)) or "none"
    others = [f"{e.model or 'any model'} on {e.network}" for e in PUBLISHED if e.name == name]
    if others:
        reason += f". {name!r} is there for {'; '.join(others)}"
    raise WeightsError(name, reason)


def table() -> list[dict[str, Any]]:
    """The registry as rows for a table, one key for each column."""
    return [
        {
            "weights": entry.name,
            "model": entry.model or "any",
            "backbone": entry.network,
            "classes": entry.classes,
            "mean IoU": "" if entry.mean_iou is None else f"{entry.mean_iou:.2f}",
            "measured on": entry.note,
            "licence": entry.licence,
            "file": entry.url,
        }
        for entry in PUBLISHED
    ]


def markdown() -> str:
    """The registry as a table for the README."""
    rows = [{**row, "file": f"[file]({row['file']})"} for row in table()]
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + " --- |" * len(rows[0])]
    lines += ["| " + " | ".join(map(str, row.values())) + " |" for row in rows]
    return "\n".join(lines) + "\n"
