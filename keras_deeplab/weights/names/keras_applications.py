"""keras.applications: ResNet50, 101 and 152, VGG16 and MobileNetV2."""

from __future__ import annotations

from typing import Any

from keras_deeplab.backbones.mobilenet_v2 import STAGES
from keras_deeplab.weights.checkpoint import Checkpoint
from keras_deeplab.weights.errors import WeightsError
from keras_deeplab.weights.names import tables

_RESNET = {
    "backbone/stem": "conv1",
    "backbone/stage{stage}_unit1_0": "conv{next_stage}_block1_0",
    "backbone/stage{stage}_unit{unit}_{index}": "conv{next_stage}_block{unit}_{index}",
}
_MOBILENET = {
    "backbone/stem_conv": "Conv1",
    "backbone/stem_norm": "bn_Conv1",
    **tables.with_norms(
        tables.mobilenet_v2("expanded_conv_{part}", "block_{block}_{part}"), "", "_BN"
    ),
}


def recognize(checkpoint: Checkpoint) -> Checkpoint | None:
    """The network of keras.applications that a file holds, None for any other."""
    arrays, model = checkpoint.arrays, {}
    depth = tables.resnet_depth(checkpoint, "conv4_block{}_3_conv/kernel")
    shared: dict[str, Any] = {"preprocessing": "caffe"}
    classifier: dict[str, Any] = {}
    if depth is not None and {"conv1_conv/bias", "conv1_bn/gamma"} <= arrays.keys():
        backbone = f"resnet{depth}"
        layers = tables.with_norms(tables.resnet(_RESNET, depth), "_conv", "_bn")
        shared |= {"stride_on": "1x1", "backbone_options": {"epsilon": 1.001e-5}}
        checkpoint = _without_biases(checkpoint, layers)
    elif "block_16_project/kernel" in arrays and "bn_Conv1/gamma" in arrays:
        backbone, layers = "mobilenet_v2", dict(_MOBILENET)
        shared = {"preprocessing": "tf", **_mobilenet_options(checkpoint)}
        classifier["classifier_conv"] = True
    elif "block5_conv3/kernel" in arrays and "block5_conv4/kernel" not in arrays:
        backbone, layers = "vgg16", {p: p.removeprefix("backbone/") for p in tables.vgg16()}
        shared["pool_ceil"] = False
        if "fc1/kernel" in arrays:
            layers |= {"dense1": "fc1", "dense2": "fc2"}
            widths = tuple(checkpoint.width(f"{name}/kernel", 2, 8192) for name in ("fc1", "fc2"))
            classifier = {**tables.VGG16_CLASSIFIER, "dense": widths}
    else:
        return None
    if "predictions/kernel" in arrays:
        layers["logits"] = "predictions"
        if backbone == "mobilenet_v2":
            layers |= {
                "backbone/classifier_conv": "Conv_1",
                "backbone/classifier_norm": "Conv_1_bn",
            }
        classes = checkpoint.width("predictions/kernel", 2, 100_000)
        model = tables.classifier(classes, **classifier)
    network = {"backbone": backbone, "backbone_arguments": shared, **model}
    return checkpoint.mapped(f"keras.applications {backbone}", layers, **network)


def _without_biases(checkpoint: Checkpoint, layers: dict[str, str]) -> Checkpoint:
    """Takes the convolutions' biases into the means of the norms behind them, where they cancel."""
    moved = {}
    for path, scope in layers.items():
        bias = checkpoint.arrays.get(f"{scope}/bias")
        if bias is not None and path.endswith("_conv"):
            name = f"{layers[path.removesuffix('conv') + 'norm']}/moving_mean"
            mean = checkpoint.array(name, 1)
            if bias.shape != mean.shape:
                raise WeightsError(checkpoint.path, f"{scope}/bias must be as long as {name}")
            moved[name] = mean - bias
    return checkpoint.with_arrays(moved)


def _mobilenet_options(checkpoint: Checkpoint) -> dict[str, Any]:
    width = checkpoint.width("block_16_project/kernel")
    # Those that keras.applications publishes; channels are rounded.
    multipliers = (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)
    multiplier = min(multipliers, key=lambda m: abs(m * STAGES[-1][1] - width))
    options = {"padding": "end", "depth_multiplier": multiplier}
    return options if multiplier == 1 else {**options, "divisible_by": 8}
