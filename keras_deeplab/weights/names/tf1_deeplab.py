"""The authors' TensorFlow 1 networks: MobileNetV2, Xception and beta ResNet, with their heads.

LiteRT files made from them keep their names, and are read by the same tables.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from keras_deeplab.backbones.mobilenet_v2 import STAGES
from keras_deeplab.backbones.xception import ENTRY, MIDDLE_UNITS
from keras_deeplab.weights.checkpoint import Checkpoint
from keras_deeplab.weights.errors import WeightsError
from keras_deeplab.weights.names import tables

_ROOT = re.compile(r"^(MobilenetV2|(xception)_(41|65|71)|(resnet_v1)_(50|101))/.*weights$")
_RESNET = {
    "backbone/stem{index}": "conv1_{index}",
    "backbone/stage{stage}_unit1_0": "block{stage}/unit_1/bottleneck_v1/shortcut",
    "backbone/stage{stage}_unit{unit}_{index}": (
        "block{stage}/unit_{unit}/bottleneck_v1/conv{index}"
    ),
}
_ASPP = {
    "aspp/conv_1x1": "aspp0",
    "aspp/image_pooling/conv": "image_pooling",
    "aspp/project": "concat_projection",
}
_ATROUS = {f"aspp/atrous_{index}": f"aspp{index + 1}" for index in range(3)}
_DECODER = {f"decoder_{index}": f"decoder/decoder_conv{index}" for index in range(2)}
_LOGITS = "MobilenetV2/Logits/Conv2d_1c_1x1"  # of the classifier


def recognize(checkpoint: Checkpoint) -> Checkpoint | None:
    """The authors' network that a checkpoint holds, None for any other."""
    match = next(filter(None, map(_ROOT.match, checkpoint.arrays)), None)
    if match is None:
        return None
    shared: dict[str, Any] = {"preprocessing": "tf"}
    if match[2]:
        backbone, layers = f"xception{match[3]}", xception(int(match[3]))
    elif match[4]:
        backbone, layers = f"resnet{match[5]}_beta", resnet_beta(int(match[5]))
    else:
        backbone, layers = "mobilenet_v2", mobilenet_v2()
        shared["backbone_options"] = _mobilenet_options(checkpoint)
    arrays, model, title = checkpoint.arrays, {}, f"the authors' {backbone}"
    if "logits/semantic/weights" in arrays and "concat_projection/weights" in arrays:
        checkpoint = tables.with_background(checkpoint, "logits/semantic")
        model = _head(checkpoint, layers)
        title = f"the authors' {model['model']} {backbone}"
        # The authors concatenate image pooling first, this package's ASPP last.
        kernel = checkpoint.array("concat_projection/weights", 4)
        kernel = np.roll(kernel, -checkpoint.width("image_pooling/weights"), axis=-2)
        checkpoint = checkpoint.with_arrays({"concat_projection/weights": kernel})
    elif backbone == "mobilenet_v2" and f"{_LOGITS}/weights" in arrays:
        layers |= _norms({"backbone/classifier": "MobilenetV2/Conv_1"}) | {"logits": _LOGITS}
        classes = checkpoint.width(f"{_LOGITS}/weights", largest=100_000)
        model = tables.classifier(classes, classifier_conv=True)
        kernel = checkpoint.array(f"{_LOGITS}/weights", 4)  # of 1x1
        kernel = kernel.reshape(kernel.shape[2:])
        checkpoint = checkpoint.with_arrays({f"{_LOGITS}/weights": kernel})
    return checkpoint.mapped(title, layers, backbone=backbone, backbone_arguments=shared, **model)


def _head(checkpoint: Checkpoint, layers: dict[str, str]) -> dict[str, Any]:
    """The model that the head makes up; adds the names of the head's layers."""
    rates = sum(
        checkpoint.has(f"aspp{index}/") or checkpoint.has(f"aspp{index}_depthwise/")
        for index in range(1, 20)
    )
    if rates not in (0, 3):
        raise WeightsError(
            checkpoint.path, f"its ASPP has {rates} atrous branches, whose rates are not known"
        )
    has_decoder = checkpoint.has("decoder/")
    if checkpoint.has("decoder/feature_projection0_1/"):
        rule = "its decoder has two stages (decoder_output_stride=4,2), which no model here has"
        raise WeightsError(checkpoint.path, rule)
    convolutions = {**(_ATROUS if rates else {}), **(_DECODER if has_decoder else {})}
    separable = {checkpoint.has(f"{theirs}_depthwise/") for theirs in convolutions.values()}
    if len(separable) > 1:
        rule = "its ASPP and decoder are not both separable or both dense, as in the models here"
        raise WeightsError(checkpoint.path, rule)
    layers |= _norms(_ASPP, "/") | {"logits": "logits/semantic"}
    own: dict[str, Any] = {
        "num_classes": checkpoint.width("logits/semantic/weights", largest=100_000),
        "aspp_filters": checkpoint.width("aspp0/weights"),
        "separable": True in separable,
        "align_corners": True,
        "epsilon": 1e-5,
        **checkpoint.model_arguments,  # the output stride of a LiteRT file
    }
    if rates == 0:  # those of other networks are the model's default; a file does not have them
        own["aspp_rates"] = ()
    layers |= _separable(convolutions) if own["separable"] else _norms(convolutions, "/")
    if not has_decoder:
        return {"model": "DeepLabV3", "model_arguments": {**own, "head_filters": None}}
    layers |= _norms({"decoder_low_level": "decoder/feature_projection0"}, "/")
    half = "_pointwise" if own["separable"] else ""
    own["low_level_filters"] = checkpoint.width("decoder/feature_projection0/weights")
    own["decoder_filters"] = checkpoint.width(f"decoder/decoder_conv1{half}/weights")
    return {"model": "DeepLabV3Plus", "model_arguments": own}


def _mobilenet_options(checkpoint: Checkpoint) -> dict[str, Any]:
    last = STAGES[-1][1]
    width = checkpoint.width("MobilenetV2/expanded_conv_16/project/weights", largest=2 * last)
    second = checkpoint.width("MobilenetV2/expanded_conv_1/project/weights")
    options: dict[str, Any] = {"depth_multiplier": width / last, "padding": "same"}
    if width != last and second != int(STAGES[1][1] * width / last + 0.5):
        options["divisible_by"] = 8  # the ImageNet classifiers' rounding, not DeepLab's
    return options


def mobilenet_v2() -> dict[str, str]:
    """The backbone's map of names."""
    blocks = tables.mobilenet_v2("expanded_conv/{part}", "expanded_conv_{block}/{part}")
    return _norms(tables.after("MobilenetV2/", {"backbone/stem": "Conv", **blocks}))


def xception(depth: int) -> dict[str, str]:
    """The map of names of Xception41, 65 or 71."""
    entries, middles = range(1, len(ENTRY[depth]) + 1), range(1, MIDDLE_UNITS[depth] + 1)
    units = {f"entry{n}": f"entry_flow/block{n}/unit_1" for n in entries}
    units |= {f"middle{n}": f"middle_flow/block1/unit_{n}" for n in middles}
    units |= {f"exit{n}": f"exit_flow/block{n}/unit_1" for n in (1, 2)}
    layers = _norms({f"backbone/stem{n}": f"entry_flow/conv1_{n}" for n in (1, 2)})
    for ours, unit in units.items():
        theirs = f"{unit}/xception_module"
        table = {f"backbone/{ours}_conv{n}": f"{theirs}/separable_conv{n}" for n in (1, 2, 3)}
        layers |= _separable(table)
        if ours.startswith("entry") or ours == "exit1":
            layers |= _norms({f"backbone/{ours}_shortcut": f"{theirs}/shortcut"})
    return tables.after(f"xception_{depth}/", layers)


def resnet_beta(depth: int) -> dict[str, str]:
    """The map of names of the "beta" ResNet50 or 101."""
    return tables.after(f"resnet_v1_{depth}/", _norms(tables.resnet(_RESNET, depth)))


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
