"""deeplab-pytorch: DeepLab V2 on ResNet101, whose weights come from the authors' Caffe files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from keras_deeplab.backbones.resnet import UNITS
from keras_deeplab.weights.checkpoint import Checkpoint
from keras_deeplab.weights.errors import WeightsError


def recognize(checkpoint: Checkpoint) -> Checkpoint | None:
    """DeepLab V2 of deeplab-pytorch, None for any other state dict."""
    prefix = "base." if checkpoint.has("base.layer1.") else ""  # its multi-scale wrapper
    if f"{prefix}layer1.conv1.conv.weight" not in checkpoint.arrays:
        return None
    count = sum(checkpoint.has(f"{prefix}layer4.block{unit}.") for unit in range(1, 100))
    depths = {units[2]: depth for depth, units in UNITS.items()}
    branches = sum(checkpoint.has(f"{prefix}aspp.c{index}.") for index in range(100))
    if count not in depths or branches == 0:
        raise WeightsError(
            checkpoint.path,
            "it is named as deeplab-pytorch names networks, but is no DeepLab V2: its fourth layer "
            f"has {count} blocks and its ASPP {branches} branches",
        )
    layers = dict(_layers(UNITS[depths[count]], prefix))
    for index in range(branches):
        layers[f"logits_{index}"] = f"{prefix}aspp.c{index}"
    own: dict[str, Any] = {
        "num_classes": checkpoint.array(f"{prefix}aspp.c0.weight", 4).shape[0],
        "head_filters": None,
        "align_corners": False,
    }
    if branches != 4:  # the rates are not in the file; four branches are the paper's
        raise WeightsError(checkpoint.path, f"its ASPP has {branches} branches, not 4")
    return checkpoint.mapped(
        f"deeplab-pytorch DeepLab V2 resnet{depths[count]}",
        layers,
        backbone=f"resnet{depths[count]}",
        backbone_arguments={
            "stride_on": "1x1",
            "pool_ceil": True,
            "preprocessing": "caffe_deeplab",
        },
        model="DeepLabV2",
        model_arguments=own,
    )


def _layers(units: tuple[int, ...], prefix: str) -> Iterator[tuple[str, str]]:
    yield from _conv_norm("stem", f"{prefix}layer1.conv1")
    for stage, count in enumerate(units, 1):
        for unit in range(1, count + 1):
            ours, theirs = f"stage{stage}_unit{unit}", f"{prefix}layer{stage + 1}.block{unit}"
            if unit == 1:
                yield from _conv_norm(f"{ours}_0", f"{theirs}.shortcut")
            for index, name in enumerate(("reduce", "conv3x3", "increase"), 1):
                yield from _conv_norm(f"{ours}_{index}", f"{theirs}.{name}")


def _conv_norm(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    yield f"backbone/{ours}_conv", f"{theirs}.conv"
    yield f"backbone/{ours}_norm", f"{theirs}.bn"
