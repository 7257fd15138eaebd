"""keras.applications: ResNet50, 101 and 152, VGG16 and MobileNetV2."""

from __future__ import annotations

from typing import Any

from keras_deeplab.backbones.mobilenet_v2 import STAGES
from keras_deeplab.weights.checkpoint import KERAS, Checkpoint
from keras_deeplab.weights.errors import WeightsError
from keras_deeplab.weights.names import tables

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
    depth = tables.resnet_depth(checkpoint, "conv4_block{}_3_conv/kernel")
    if depth is None:
        return None
    layers = tables.with_norms(tables.resnet(_RESNET, depth), "_conv", "_bn")
    needs = _classifier(checkpoint, layers)
    return _without_biases(checkpoint, layers).mapped(
        f"keras.applications resnet{depth}",
        layers,
        backbone=f"resnet{depth}",
        backbone_arguments={
            "preprocessing": "caffe",
            "stride_on": "1x1",
            "backbone_options": {"epsilon": 1.001e-5},
        },
        **needs,
    )


def _without_biases(checkpoint: Checkpoint, layers: dict[str, str]) -> Checkpoint:
    """Takes the convolutions' biases into the means of the norms behind them, where they cancel."""
    moved = {}
    for path, scope in layers.items():
        bias = checkpoint.arrays.get(f"{scope}/bias")
        if bias is not None and path.endswith("_conv"):
            name = f"{layers[path.removesuffix('conv') + 'norm']}/moving_mean"
            mean = checkpoint.array(name, 1)
            if bias.shape != mean.shape:
                raise WeightsError(
                    checkpoint.path,
                    f"{scope}/bias must have the shape of {name}. Received: {bias.shape} and "
                    f"{mean.shape}",
                )
            moved[name] = mean - bias
    return checkpoint.with_arrays(moved)


def _classifier(checkpoint: Checkpoint, layers: dict[str, str], **arguments: Any) -> dict[str, Any]:
    """The model that the classifier makes up, where the file has one."""
    if "predictions/kernel" not in checkpoint.arrays:
        return {}
    layers["logits"] = "predictions"
    return tables.classifier(checkpoint.width("predictions/kernel", 2, 100_000), **arguments)


def _mobilenet(checkpoint: Checkpoint) -> Checkpoint:
    blocks = range(1, sum(repeats for _, _, repeats, _ in STAGES))
    parts = ("depthwise", "project")
    later = tables.expanded(_MOBILENET, block=blocks, part=("expand", *parts))
    layers = tables.expanded(_MOBILENET_START, part=parts) | tables.with_norms(later, "", "_BN")
    width = checkpoint.width("block_16_project/kernel")
    # The widths that keras.applications publishes, the last of which are rounded.
    published = (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)
    multiplier = min(published, key=lambda m: abs(m * STAGES[-1][1] - width))
    options: dict[str, Any] = {"padding": "end", "depth_multiplier": multiplier}
    if multiplier != 1:
        options["divisible_by"] = 8
    needs = _classifier(checkpoint, layers, classifier_conv=True)
    if needs:
        layers |= {"backbone/classifier_conv": "Conv_1", "backbone/classifier_norm": "Conv_1_bn"}
    return checkpoint.mapped(
        "keras.applications mobilenet_v2",
        layers,
        backbone="mobilenet_v2",
        backbone_arguments={"preprocessing": "tf", "backbone_options": options},
        **needs,
    )


def _vgg16(checkpoint: Checkpoint) -> Checkpoint:
    layers = {path: path.removeprefix("backbone/") for path in tables.vgg16()}
    own: dict[str, Any] = {}
    if "fc1/kernel" in checkpoint.arrays:
        # Its dense layers require maps of 7x7, in which the pyramid's bins are the pixels.
        layers |= {"dense1": "fc1", "dense2": "fc2"}
        widths = tuple(checkpoint.width(f"{name}/kernel", 2, 8192) for name in ("fc1", "fc2"))
        own = {"levels": (7,), "dense": widths, "replace_pooling": False}
    needs = _classifier(checkpoint, layers, **own)
    return checkpoint.mapped(
        "keras.applications vgg16",
        layers,
        backbone="vgg16",
        backbone_arguments={"preprocessing": "caffe", "pool_ceil": False},
        **needs,
    )
