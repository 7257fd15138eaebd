"""torchvision: ResNets, VGG16, MobileNetV3 and the DeepLabV3s on them."""

from __future__ import annotations

from typing import Any

from keras_deeplab.backbones.mobilenet_v3 import BLOCKS as MOBILENET_BLOCKS
from keras_deeplab.weights.checkpoint import Checkpoint
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

# A backbone, what any model on it needs, and the names of its layers.
_Network = tuple[str, dict[str, Any], dict[str, str]]


def recognize(checkpoint: Checkpoint) -> Checkpoint | None:
    """The network of torchvision that a state dict holds, None for any other."""
    arrays = checkpoint.arrays
    if checkpoint.has("backbone.layer4."):
        return _segmentation(checkpoint, *_resnet(checkpoint, "backbone."))
    if checkpoint.has("backbone.16."):
        # What torchvision trained dilates the convolution that lost its stride too.
        network = "mobilenet_v3_large", {"dilated_early": True}, mobilenet_v3_large("backbone.")
        return _segmentation(checkpoint, *network)
    if checkpoint.has("features.16.0."):
        return _plain(checkpoint, "mobilenet_v3_large", {}, mobilenet_v3_large("features."))
    if {"conv1.weight", "fc.weight"} <= set(arrays) or checkpoint.has("layer4.0.conv3"):
        return _plain(checkpoint, *_resnet(checkpoint, ""))
    kernels = {f"features.{index}.weight" for index in _VGG16_FEATURES}
    found = {name for name in arrays if name.startswith("features.")}
    if kernels <= found and len(found) == 2 * len(kernels):
        return _vgg16(checkpoint)
    return None


def _resnet(checkpoint: Checkpoint, prefix: str) -> _Network:
    depth = tables.resnet_depth(checkpoint, prefix + "layer3.{}.conv3.weight")
    if depth is None or checkpoint.array(f"{prefix}layer1.0.conv2.weight", 4).shape[1] != 64:
        raise WeightsError(checkpoint.path, "it is not a ResNet-50, 101 or 152 of the common width")
    layers = tables.after(prefix, tables.resnet(RESNET, depth))
    return f"resnet{depth}", {"stride_on": "3x3"}, layers


def mobilenet_v3_large(prefix: str) -> dict[str, str]:
    """The backbone's map of names."""
    blocks, channels = MOBILENET_BLOCKS["large"], 16
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


def _segmentation(
    checkpoint: Checkpoint, backbone: str, shared: dict[str, Any], layers: dict[str, str]
) -> Checkpoint:
    if not checkpoint.has("classifier.0.convs."):  # FCN, LR-ASPP: another head on the same network
        return _mapped(checkpoint, f"segmentation {backbone}", backbone, shared, layers)
    layers |= HEAD
    is_mobile = backbone == "mobilenet_v3_large"
    own: dict[str, Any] = {
        "num_classes": checkpoint.width("classifier.4.weight", largest=100_000),
        "output_stride": 16 if is_mobile else 8,
        "aspp_rates": (12, 24, 36),
        "dropout": 0.5,
        "align_corners": False,
        "epsilon": 1e-5,
    }
    if not is_mobile:
        own["multi_grid"] = (1, 1, 1)
    if checkpoint.has("aux_classifier."):
        own["auxiliary_layer"] = "auto"
        layers |= _AUXILIARY
    model = {"model": "DeepLabV3", "model_arguments": own}
    return _mapped(checkpoint, f"deeplabv3_{backbone}", backbone, shared, layers, **model)


def _plain(
    checkpoint: Checkpoint, backbone: str, shared: dict[str, Any], layers: dict[str, str]
) -> Checkpoint:
    """A classifier, or a network whose classifier was taken off."""
    model = {}
    if "fc.weight" in checkpoint.arrays:
        layers["logits"] = "fc"
        model = tables.classifier(checkpoint.width("fc.weight", 2, 100_000))
    return _mapped(checkpoint, backbone, backbone, shared, layers, **model)


def _vgg16(checkpoint: Checkpoint) -> Checkpoint:
    places = zip(tables.vgg16(), _VGG16_FEATURES, strict=True)
    layers = {name: f"features.{place}" for name, place in places}
    model = {}
    if "classifier.6.weight" in checkpoint.arrays:
        layers |= {"dense1": "classifier.0", "dense2": "classifier.3", "logits": "classifier.6"}
        name = "classifier.0.weight"
        first = checkpoint.array(name, 2)
        if first.shape[1] != 512 * 7 * 7:
            raise WeightsError(
                checkpoint.path, f"{name} must have 512 * 7 * 7 inputs. Received: {first.shape[1]}"
            )
        # torch lays the 7x7 map out channel by channel, the pyramid bin by bin.
        bins = first.reshape(len(first), -1, 7, 7).transpose(0, 2, 3, 1).reshape(len(first), -1)
        checkpoint = checkpoint.with_arrays({name: bins})
        model = tables.classifier(
            checkpoint.width("classifier.6.weight", 2, 100_000),
            levels=(7,),
            dense=tuple(
                checkpoint.width(f"classifier.{place}.weight", 2, 8192) for place in (0, 3)
            ),
            replace_pooling=False,
        )
    return _mapped(checkpoint, "vgg16", "vgg16", {"pool_ceil": False}, layers, **model)


def _mapped(
    checkpoint: Checkpoint,
    title: str,
    backbone: str,
    shared: dict[str, Any],
    layers: dict[str, str],
    **model: Any,
) -> Checkpoint:
    shared = {"preprocessing": "torch", **shared}
    network = {"backbone": backbone, "backbone_arguments": shared, **model}
    return checkpoint.mapped(f"torchvision {title}", layers, **network)
