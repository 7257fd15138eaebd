"""torchvision: ResNets, VGG16, MobileNetV3 and the DeepLabV3s on them."""

from __future__ import annotations

import re
from typing import Any

from keras_deeplab.backbones.mobilenet_v3 import BLOCKS as MOBILENET_BLOCKS
from keras_deeplab.names import first_few
from keras_deeplab.weights.checkpoint import COUNTERS, Checkpoint
from keras_deeplab.weights.errors import WeightsError
from keras_deeplab.weights.names import tables

RESNET = {
    "backbone/stem_conv": "conv1",
    "backbone/stem_norm": "bn1",
    "backbone/stage{stage}_unit1_0_conv": "layer{stage}.0.downsample.0",
    "backbone/stage{stage}_unit1_0_norm": "layer{stage}.0.downsample.1",
    "backbone/stage{stage}_unit{unit}_{index}_conv": "layer{stage}.{unit_from_0}.conv{index}",
    "backbone/stage{stage}_unit{unit}_{index}_norm": "layer{stage}.{unit_from_0}.bn{index}",
}
_ASPP = {
    "aspp/conv_1x1": "classifier.0.convs.0",
    "aspp/atrous_0": "classifier.0.convs.1",
    "aspp/atrous_1": "classifier.0.convs.2",
    "aspp/atrous_2": "classifier.0.convs.3",
    "aspp/project": "classifier.0.project",
}
HEAD = {
    **tables.with_norms(_ASPP, ".0", ".1", joint="/"),
    "aspp/image_pooling/conv/conv": "classifier.0.convs.4.1",
    "aspp/image_pooling/conv/norm": "classifier.0.convs.4.2",
    "head/conv": "classifier.1",
    "head/norm": "classifier.2",
    "logits": "classifier.4",
}
_AUXILIARY = {
    "auxiliary/conv": "aux_classifier.0",
    "auxiliary/norm": "aux_classifier.1",
    "auxiliary/logits": "aux_classifier.4",
}
# Places of VGG16's convolutions in `features`, between ReLUs and poolings.
_VGG16_FEATURES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)


def recognize(checkpoint: Checkpoint) -> Checkpoint | None:
    """The network of torchvision that a state dict holds, None for any other."""
    arrays, model = checkpoint.arrays, {}
    shared: dict[str, Any] = {"preprocessing": "torch"}
    kernels = {f"features.{index}.weight" for index in _VGG16_FEATURES}
    features = {name for name in arrays if name.startswith("features.")}
    if checkpoint.has("backbone.layer4."):
        backbone, layers = _resnet(checkpoint, "backbone.")
    elif {"conv1.weight", "fc.weight"} <= set(arrays) or checkpoint.has("layer4.0.conv3"):
        backbone, layers = _resnet(checkpoint, "")
    elif checkpoint.has("backbone.16."):
        backbone, layers = "mobilenet_v3_large", mobilenet_v3("large", "backbone.")
        shared["dilated_early"] = True  # the convolution that lost its stride is dilated too
    elif checkpoint.has("features.16.0."):
        backbone, layers = "mobilenet_v3_large", mobilenet_v3("large", "features.")
    elif checkpoint.has("features.12.0."):
        backbone, layers = "mobilenet_v3_small", mobilenet_v3("small", "features.")
    elif kernels <= features and len(features) == 2 * len(kernels):
        places = zip(tables.vgg16(), _VGG16_FEATURES, strict=True)
        backbone, layers = "vgg16", {name: f"features.{place}" for name, place in places}
        shared["pool_ceil"] = False
    else:
        return None
    if backbone.startswith("resnet"):
        shared["stride_on"] = "3x3"
    title = backbone
    if checkpoint.has("classifier.0.convs."):  # not of FCN and LR-ASPP, heads on the same networks
        title = f"deeplabv3_{backbone}"
        for predictor in ("classifier.4", "aux_classifier.4"):
            checkpoint = tables.with_background(checkpoint, predictor)
        model = _deeplab(checkpoint, backbone, layers)
    elif "fc.weight" in arrays:
        layers["logits"] = "fc"
        model = tables.classifier(checkpoint.width("fc.weight", 2, 100_000))
    elif backbone == "vgg16" and "classifier.6.weight" in arrays:
        checkpoint = _with_bins(checkpoint)
        layers |= {"dense1": "classifier.0", "dense2": "classifier.3", "logits": "classifier.6"}
        names = ("classifier.0.weight", "classifier.3.weight")
        widths = tuple(checkpoint.width(name, 2, 8192) for name in names)
        model = tables.classifier(
            checkpoint.width("classifier.6.weight", 2, 100_000),
            **tables.VGG16_CLASSIFIER,
            dense=widths,
        )
    network = {"backbone": backbone, "backbone_arguments": shared, **model}
    return checkpoint.mapped(f"torchvision {title}", layers, **network)


def _resnet(checkpoint: Checkpoint, prefix: str) -> tuple[str, dict[str, str]]:
    depth = tables.resnet_depth(checkpoint, prefix + "layer3.{}.conv3.weight")
    if depth is None or checkpoint.array(f"{prefix}layer1.0.conv2.weight", 4).shape[1] != 64:
        raise WeightsError(checkpoint.path, "it is not a ResNet-50, 101 or 152 of the common width")
    layers = tables.after(prefix, tables.resnet(RESNET, depth))
    unit = re.compile(re.escape(prefix) + r"layer\d\.\d+\.")
    names = [name for name in checkpoint.arrays if not name.endswith(COUNTERS)]
    scopes = {name.rpartition(".")[0] for name in names if unit.match(name)}
    if others := sorted(scopes - set(layers.values())):
        rule = f"it has layers that a ResNet does not have: {first_few(others)}"
        raise WeightsError(checkpoint.path, rule)
    return f"resnet{depth}", layers


def mobilenet_v3(size: str, prefix: str) -> dict[str, str]:
    """The backbone's map of names."""
    blocks, channels = MOBILENET_BLOCKS[size], 16
    convolutions, squeezes = {"backbone/stem": "0", "backbone/last": f"{len(blocks) + 1}"}, {}
    for index, block in enumerate(blocks):
        ours, theirs = f"backbone/block{index}", f"{index + 1}.block"
        expand = ["expand"] if block.expanded != channels else []
        squeeze = ["squeeze"] if block.squeeze else []
        for place, part in enumerate([*expand, "depthwise", *squeeze, "project"]):
            if part == "squeeze":
                squeezes[f"{ours}_squeeze_reduce"] = f"{theirs}.{place}.fc1"
                squeezes[f"{ours}_squeeze_expand"] = f"{theirs}.{place}.fc2"
            else:
                convolutions[f"{ours}_{part}"] = f"{theirs}.{place}"
        channels = block.channels
    return tables.after(prefix, tables.with_norms(convolutions, ".0", ".1") | squeezes)


def _deeplab(checkpoint: Checkpoint, backbone: str, layers: dict[str, str]) -> dict[str, Any]:
    """The model that the head makes up; adds the names of the head's layers."""
    is_mobile = backbone == "mobilenet_v3_large"
    layers |= HEAD
    arguments: dict[str, Any] = {
        "num_classes": checkpoint.width("classifier.4.weight", largest=100_000),
        "output_stride": 16 if is_mobile else 8,
        "aspp_rates": (12, 24, 36),
        "dropout": 0.5,
        "align_corners": False,
        "epsilon": 1e-5,
    }
    if not is_mobile:
        arguments["multi_grid"] = (1, 1, 1)
    if checkpoint.has("aux_classifier."):
        arguments["auxiliary_layer"] = "auto"
        layers |= _AUXILIARY
    return {"model": "DeepLabV3", "model_arguments": arguments}


def _with_bins(checkpoint: Checkpoint) -> Checkpoint:
    """VGG16's first dense layer: torch lays the 7x7 map out by channel, the pyramid by bin."""
    name = "classifier.0.weight"
    kernel = checkpoint.array(name, 2)
    if kernel.shape[1] != 512 * 7 * 7:
        rule = f"{name} must have 512 * 7 * 7 inputs. Received: {kernel.shape[1]}"
        raise WeightsError(checkpoint.path, rule)
    bins = kernel.reshape(len(kernel), 512, 7, 7).transpose(0, 2, 3, 1)
    return checkpoint.with_arrays({name: bins.reshape(kernel.shape)})
