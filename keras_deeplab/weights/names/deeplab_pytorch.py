"""deeplab-pytorch: DeepLab V2 on ResNet101, whose weights come from the authors' Caffe files."""

from __future__ import annotations

from keras_deeplab.weights.checkpoint import Checkpoint
from keras_deeplab.weights.errors import WeightsError
from keras_deeplab.weights.names import tables

_RESNET = {
    "backbone/stem": "layer1.conv1",
    "backbone/stage{stage}_unit1_0": "layer{next_stage}.block1.shortcut",
    "backbone/stage{stage}_unit{unit}_1": "layer{next_stage}.block{unit}.reduce",
    "backbone/stage{stage}_unit{unit}_2": "layer{next_stage}.block{unit}.conv3x3",
    "backbone/stage{stage}_unit{unit}_3": "layer{next_stage}.block{unit}.increase",
}


def recognize(checkpoint: Checkpoint) -> Checkpoint | None:
    """DeepLab V2 of deeplab-pytorch, None for any other state dict."""
    prefix = "base." if checkpoint.has("base.layer1.") else ""  # its multi-scale wrapper
    if f"{prefix}layer1.conv1.conv.weight" not in checkpoint.arrays:
        return None
    depth = tables.resnet_depth(checkpoint, prefix + "layer4.block{}.reduce.conv.weight")
    branches = sum(checkpoint.has(f"{prefix}aspp.c{index}.") for index in range(100))
    if depth is None or branches != 4:  # the rates of other ASPPs are not in the file
        rule = "deeplab-pytorch's network must be a ResNet with an ASPP of 4 branches"
        raise WeightsError(checkpoint.path, f"{rule}. Received: {branches} branches")
    classes = checkpoint.width(f"{prefix}aspp.c0.weight", largest=100_000)
    layers = tables.with_norms(tables.resnet(_RESNET, depth), ".conv", ".bn")
    layers |= {f"logits_{index}": f"aspp.c{index}" for index in range(4)}
    return checkpoint.mapped(
        f"deeplab-pytorch DeepLab V2 resnet{depth}",
        tables.after(prefix, layers),
        backbone=f"resnet{depth}",
        backbone_arguments={
            "stride_on": "1x1",
            "pool_ceil": True,
            "preprocessing": "caffe_deeplab",
        },
        model="DeepLabV2",
        model_arguments={"num_classes": classes, "head_filters": None, "align_corners": False},
    )
