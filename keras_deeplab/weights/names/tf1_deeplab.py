"""The authors' TensorFlow 1 networks: MobileNetV2, Xception and beta ResNet, with their heads.

LiteRT files made from them keep their names, and are read by the same tables.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from keras_deeplab.backbones.mobilenet_v2 import STAGES
from keras_deeplab.backbones.resnet import UNITS
from keras_deeplab.backbones.xception import ENTRY, MIDDLE_UNITS
from keras_deeplab.weights.checkpoint import Checkpoint
from keras_deeplab.weights.errors import WeightsError
from keras_deeplab.weights.layouts import TF1
from keras_deeplab.weights.names import tables

_XCEPTION_ROOT = re.compile(r"^xception_(41|65|71)/")
_RESNET_ROOT = re.compile(r"^resnet_v1_(50|101)/")


_MOBILENET_START = {"backbone/stem": "Conv", "backbone/block0_{part}": "expanded_conv/{part}"}
_MOBILENET = {"backbone/block{block}_{part}": "expanded_conv_{block}/{part}"}
_RESNET = {
    "backbone/stem{index}": "conv1_{index}",
    "backbone/stage{stage}_unit1_0": "block{stage}/unit_1/bottleneck_v1/shortcut",
    "backbone/stage{stage}_unit{unit}_{index}": (
        "block{stage}/unit_{unit}/bottleneck_v1/conv{index}"
    ),
}
_XCEPTION_STEM = {"backbone/stem{index}": "entry_flow/conv1_{index}"}
_XCEPTION_UNIT = {"backbone/{ours}_conv{index}": "{theirs}/xception_module/separable_conv{index}"}
_ASPP = {
    "aspp/conv_1x1": "aspp0",
    "aspp/image_pooling/conv": "image_pooling",
    "aspp/project": "concat_projection",
}
_ATROUS = {f"aspp/atrous_{index}": f"aspp{index + 1}" for index in range(3)}
_DECODER = {f"decoder_{index}": f"decoder/decoder_conv{index}" for index in range(2)}


def recognize(checkpoint: Checkpoint) -> Checkpoint | None:
    """The authors' network that a checkpoint holds, None for any other."""
    if checkpoint.layout is not TF1:
        return None
    for name in checkpoint.arrays:
        if name.startswith("MobilenetV2/"):
            return _found(checkpoint, *_mobilenet(checkpoint))
        if match := _XCEPTION_ROOT.match(name):
            depth = int(match[1])
            layers = xception(depth)
            return _found(checkpoint, f"xception{depth}", {"preprocessing": "tf"}, layers)
        if match := _RESNET_ROOT.match(name):
            return _found(checkpoint, *_resnet_beta(checkpoint, int(match[1]), match[0]))
    return None


def _found(
    checkpoint: Checkpoint, backbone: str, shared: dict[str, Any], layers: dict[str, str]
) -> Checkpoint:
    needs: dict[str, Any] = {"backbone": backbone, "backbone_arguments": shared}
    arrays = checkpoint.arrays
    title = f"the authors' {backbone}"
    if "logits/semantic/weights" in arrays and "concat_projection/weights" in arrays:
        has_decoder = checkpoint.has("decoder/")
        needs["model"] = "DeepLabV3Plus" if has_decoder else "DeepLabV3"
        needs["model_arguments"] = _head_arguments(checkpoint)
        layers |= _head(checkpoint)
        checkpoint = _with_pooling_last(checkpoint)
        title = f"the authors' {needs['model']} {backbone}"
    elif backbone == "mobilenet_v2" and "MobilenetV2/Logits/Conv2d_1c_1x1/weights" in arrays:
        layers |= _norms({"backbone/classifier": "MobilenetV2/Conv_1"})
        layers["logits"] = "MobilenetV2/Logits/Conv2d_1c_1x1"
        kernel = checkpoint.array("MobilenetV2/Logits/Conv2d_1c_1x1/weights", 4)
        if kernel.shape[:2] != (1, 1):
            raise WeightsError(
                checkpoint.path, f"its logits must be a 1x1 kernel. Received: shape={kernel.shape}"
            )
        checkpoint = checkpoint.with_arrays(
            **{"MobilenetV2/Logits/Conv2d_1c_1x1/weights": kernel.reshape(kernel.shape[-2:])}
        )
        needs["model"] = "SPPNet"
        needs["model_arguments"] = {
            "num_classes": kernel.shape[-1],
            **tables.MEAN_AND_DENSE,
            "classifier_conv": True,
        }
    return checkpoint.mapped(title, layers, **needs)


def _head_arguments(checkpoint: Checkpoint) -> dict[str, Any]:
    separable = checkpoint.has("aspp1_depthwise/") or checkpoint.has(
        "decoder/decoder_conv0_depthwise/"
    )
    own: dict[str, Any] = {
        "num_classes": _width(checkpoint, "logits/semantic"),
        "aspp_filters": _width(checkpoint, "aspp0"),
        "separable": separable,
        "align_corners": True,
        "epsilon": 1e-5,
    }
    if _rates(checkpoint) == 0:
        own["aspp_rates"] = ()
    if checkpoint.output_stride is not None:
        own["output_stride"] = checkpoint.output_stride
    if checkpoint.has("decoder/"):
        half = "_pointwise" if separable else ""
        own["low_level_filters"] = _width(checkpoint, "decoder/feature_projection0")
        own["decoder_filters"] = _width(checkpoint, f"decoder/decoder_conv1{half}")
    else:
        own["head_filters"] = None
    return own


def _width(checkpoint: Checkpoint, scope: str) -> int:
    return checkpoint.array(f"{scope}/weights", 4).shape[-1]


def _rates(checkpoint: Checkpoint) -> int:
    """The number of atrous branches; the rates themselves are not in a checkpoint."""
    count = sum(
        checkpoint.has(f"aspp{index}/") or checkpoint.has(f"aspp{index}_depthwise/")
        for index in range(1, 20)
    )
    if count not in (0, 3):
        raise WeightsError(
            checkpoint.path, f"its ASPP has {count} atrous branches, whose rates are not known"
        )
    return count


def _head(checkpoint: Checkpoint) -> dict[str, str]:
    layers = _norms(_ASPP, "/")
    separable = dict(_ATROUS) if _rates(checkpoint) else {}
    if checkpoint.has("decoder/"):
        layers |= _norms({"decoder_low_level": "decoder/feature_projection0"}, "/")
        separable |= _DECODER
    for ours, theirs in separable.items():
        is_separable = checkpoint.has(f"{theirs}_depthwise/")
        layers |= _separable({ours: theirs}) if is_separable else _norms({ours: theirs}, "/")
    return {**layers, "logits": "logits/semantic"}


def _with_pooling_last(checkpoint: Checkpoint) -> Checkpoint:
    """The authors concatenate image pooling first, this package's ASPP last."""
    kernel = checkpoint.array("concat_projection/weights", 4)
    pooled = _width(checkpoint, "image_pooling")
    kernel = np.roll(kernel, -pooled, axis=-2)
    return checkpoint.with_arrays(**{"concat_projection/weights": kernel})


def _mobilenet(checkpoint: Checkpoint) -> tuple[str, dict[str, Any], dict[str, str]]:
    width = _width(checkpoint, "MobilenetV2/expanded_conv_16/project")
    multiplier = width / STAGES[-1][1]
    options: dict[str, Any] = {"depth_multiplier": multiplier, "padding": "same"}
    second = _width(checkpoint, "MobilenetV2/expanded_conv_1/project")
    if multiplier != 1 and second != int(STAGES[1][1] * multiplier + 0.5):
        options["divisible_by"] = 8  # the ImageNet classifiers' rounding, not DeepLab's
    return "mobilenet_v2", {"preprocessing": "tf", "backbone_options": options}, mobilenet_v2()


def mobilenet_v2() -> dict[str, str]:
    """The backbone's map of names."""
    blocks = range(1, sum(repeats for _, _, repeats, _ in STAGES))
    parts = ("depthwise", "project")
    table = tables.expanded(_MOBILENET_START, part=parts)
    table |= tables.expanded(_MOBILENET, block=blocks, part=("expand", *parts))
    return _norms(tables.after("MobilenetV2/", table))


def xception(depth: int) -> dict[str, str]:
    """The map of names of Xception41, 65 or 71."""
    entry = [f"entry{n}" for n in range(1, len(ENTRY[depth]) + 1)]
    units = {ours: f"entry_flow/block{n}/unit_1" for n, ours in enumerate(entry, 1)}
    units |= {
        f"middle{n}": f"middle_flow/block1/unit_{n}" for n in range(1, MIDDLE_UNITS[depth] + 1)
    }
    units |= {"exit1": "exit_flow/block1/unit_1", "exit2": "exit_flow/block2/unit_1"}
    layers = _norms(tables.expanded(_XCEPTION_STEM, index=(1, 2)))
    for ours, theirs in units.items():
        place = {"ours": [ours], "theirs": [theirs], "index": (1, 2, 3)}
        layers |= _separable(tables.expanded(_XCEPTION_UNIT, **place))
        if ours in (*entry, "exit1"):
            layers |= _norms({f"backbone/{ours}_shortcut": f"{theirs}/xception_module/shortcut"})
    return tables.after(f"xception_{depth}/", layers)


def _resnet_beta(
    checkpoint: Checkpoint, depth: int, root: str
) -> tuple[str, dict[str, Any], dict[str, str]]:
    if f"{root}conv1_1/weights" not in checkpoint.arrays:
        raise WeightsError(
            checkpoint.path,
            f"it holds the plain resnet_v1_{depth} with a 7x7 convolution at its root; only the "
            '"beta" form with three 3x3 convolutions is a network of this package',
        )
    return f"resnet{depth}_beta", {"preprocessing": "tf"}, resnet_beta(depth)


def resnet_beta(depth: int) -> dict[str, str]:
    """The map of names of the "beta" ResNet50 or 101."""
    return tables.after(f"resnet_v1_{depth}/", _norms(tables.resnet(_RESNET, UNITS[depth])))


def _norms(table: tables.Table, joint: str = "_") -> dict[str, str]:
    return tables.with_norms(table, "", "/BatchNorm", joint)


def _separable(table: tables.Table) -> dict[str, str]:
    """Depthwise and pointwise convolution, each with its norm, for each row."""
    return {
        f"{ours}/{half}{ending}": f"{theirs}_{half}{norm}"
        for ours, theirs in table.items()
        for half in ("depthwise", "pointwise")
        for ending, norm in (("", ""), ("_norm", "/BatchNorm"))
    }
