"""keras.applications: ResNet50, 101 and 152, VGG16 and MobileNetV2."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from keras_deeplab.backbones.mobilenet_v2 import STAGES
from keras_deeplab.backbones.resnet import UNITS
from keras_deeplab.weights.checkpoint import Checkpoint
from keras_deeplab.weights.errors import WeightsError
from keras_deeplab.weights.layouts import KERAS
from keras_deeplab.weights.names import tables

_CAFFE = {"preprocessing": "caffe"}


_RESNET = {
    "backbone/stem": "conv1",
    "backbone/stage{stage}_unit1_0": "conv{next_stage}_block1_0",
    "backbone/stage{stage}_unit{unit}_{index}": "conv{next_stage}_block{unit}_{index}",
}
_MOBILENET = {"backbone/block{block}_{part}": "block_{block}_{part}"}
_MOBILENET_START = {
    "backbone/stem_conv": "Conv1",
    "backbone/stem_norm": "bn_Conv1",
    "backbone/block0_{part}_conv": "expanded_conv_{part}",
    "backbone/block0_{part}_norm": "expanded_conv_{part}_BN",
}


def recognize(checkpoint: Checkpoint) -> Checkpoint | None:
    """The network of keras.applications that a file holds, None for any other."""
    arrays = checkpoint.arrays
    if checkpoint.layout is not KERAS:
        return None
    if "conv5_block3_3_conv/bias" in arrays and "conv1_bn/gamma" in arrays:
        return _resnet(checkpoint)
    if "block_16_project/kernel" in arrays and "bn_Conv1/gamma" in arrays:
        return _mobilenet(checkpoint)
    if "block5_conv3/kernel" in arrays and "block5_conv4/kernel" not in arrays:
        return _vgg16(checkpoint)
    return None


def _resnet(checkpoint: Checkpoint) -> Checkpoint | None:
    units = tuple(
        sum(f"conv{stage}_block{unit}_3_conv/kernel" in checkpoint.arrays for unit in range(1, 100))
        for stage in (2, 3, 4, 5)
    )
    depths = {units: depth for depth, units in UNITS.items()}
    if units not in depths:
        return None
    layers = tables.with_norms(tables.resnet(_RESNET, units), "_conv", "_bn")
    backbone = f"resnet{depths[units]}"
    shared = {**_CAFFE, "stride_on": "1x1", "backbone_options": {"epsilon": 1.001e-5}}
    needs = _classifier(checkpoint, layers, tables.MEAN_AND_DENSE)
    return _without_biases(checkpoint, layers).mapped(
        f"keras.applications {backbone}",
        layers,
        backbone=backbone,
        backbone_arguments=shared,
        **needs,
    )


def _without_biases(checkpoint: Checkpoint, layers: dict[str, str]) -> Checkpoint:
    """Takes the convolutions' biases into the means of the norms behind them, where they cancel."""
    arrays = dict(checkpoint.arrays)
    for path, scope in layers.items():
        bias = arrays.pop(f"{scope}/bias", None) if path.endswith("_conv") else None
        if bias is not None:
            mean = f"{layers[path.removesuffix('conv') + 'norm']}/moving_mean"
            moved = checkpoint.array(mean, 1)
            if bias.shape != moved.shape:
                raise WeightsError(
                    checkpoint.path,
                    f"{scope}/bias must have the shape of {mean}. Received: {bias.shape} and "
                    f"{moved.shape}",
                )
            arrays[mean] = moved - bias
    return replace(checkpoint, arrays=arrays)


def _classifier(
    checkpoint: Checkpoint, layers: dict[str, str], own: dict[str, Any]
) -> dict[str, Any]:
    """What the classifier adds, where the file has one."""
    if "predictions/kernel" not in checkpoint.arrays:
        return {}
    layers["logits"] = "predictions"
    classes = checkpoint.array("predictions/kernel", 2).shape[-1]
    return {"model": "SPPNet", "model_arguments": {"num_classes": classes, **own}}


def _mobilenet(checkpoint: Checkpoint) -> Checkpoint:
    blocks = range(1, sum(repeats for _, _, repeats, _ in STAGES))
    parts = ("depthwise", "project")
    later = tables.expanded(_MOBILENET, block=blocks, part=("expand", *parts))
    layers = tables.expanded(_MOBILENET_START, part=parts) | tables.with_norms(later, "", "_BN")
    width = checkpoint.array("block_16_project/kernel", 4).shape[-1]
    multiplier = _multiplier(width)
    options: dict[str, Any] = {"padding": "end", "depth_multiplier": multiplier}
    if multiplier != 1:
        options["divisible_by"] = 8
    own = {**tables.MEAN_AND_DENSE, "classifier_conv": True}
    needs = _classifier(checkpoint, layers, own)
    if needs:
        layers |= {"backbone/classifier_conv": "Conv_1", "backbone/classifier_norm": "Conv_1_bn"}
    return checkpoint.mapped(
        "keras.applications mobilenet_v2",
        layers,
        backbone="mobilenet_v2",
        backbone_arguments={"preprocessing": "tf", "backbone_options": options},
        **needs,
    )


def _multiplier(width: int) -> float:
    """The depth multiplier of a last block's width; keras.applications publishes these."""
    published = (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)
    return min(published, key=lambda m: abs(m * STAGES[-1][1] - width))


def _vgg16(checkpoint: Checkpoint) -> Checkpoint:
    layers = {path: path.removeprefix("backbone/") for path in tables.vgg16()}
    own: dict[str, Any] = {}
    if "fc1/kernel" in checkpoint.arrays:
        # Its dense layers require maps of 7x7, in which the pyramid's bins are the pixels.
        layers |= {"dense1": "fc1", "dense2": "fc2"}
        widths = tuple(checkpoint.array(f"{name}/kernel", 2).shape[-1] for name in ("fc1", "fc2"))
        own = {"levels": (7,), "pooling": "average", "dense": widths, "replace_pooling": False}
    needs = _classifier(checkpoint, layers, own)
    shared = {**_CAFFE, "backbone_options": {"pool_ceil": False}}
    return checkpoint.mapped(
        "keras.applications vgg16", layers, backbone="vgg16", backbone_arguments=shared, **needs
    )
