"""torchvision: ResNets, VGG16, MobileNetV3 and the DeepLabV3s on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras_deeplab.backbones.mobilenet_v3 import BLOCKS as MOBILENET_BLOCKS
from keras_deeplab.backbones.resnet import UNITS
from keras_deeplab.weights.checkpoint import Checkpoint
from keras_deeplab.weights.errors import WeightsError
from keras_deeplab.weights.names import tables

_PREPROCESSING = {"preprocessing": "torch"}


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


def recognize(checkpoint: Checkpoint) -> Checkpoint | None:
    """The network of torchvision that a state dict holds, None for any other."""
    if checkpoint.has("backbone.layer4."):
        return _segmentation(checkpoint, *_resnet(checkpoint, "backbone."))
    if checkpoint.has("backbone.16."):
        return _segmentation(checkpoint, *_mobilenet("backbone."))
    if checkpoint.has("features.16.0."):
        return _plain(checkpoint, *_mobilenet("features."))
    if {"conv1.weight", "fc.weight"} <= set(checkpoint.arrays) or checkpoint.has("layer4.0.conv3"):
        return _plain(checkpoint, *_resnet(checkpoint, ""))
    if _is_vgg16(checkpoint):
        return _vgg16(checkpoint)
    return None


def _resnet(checkpoint: Checkpoint, prefix: str) -> tuple[str, dict[str, Any], dict[str, str]]:
    """Backbone, what any model on it needs, and the names of its layers."""
    count = sum(f"{prefix}layer3.{unit}.conv3.weight" in checkpoint.arrays for unit in range(100))
    depths = {units[2]: depth for depth, units in UNITS.items()}
    kernel = f"{prefix}layer1.0.conv2.weight"
    if count not in depths or checkpoint.array(kernel, 4).shape[1] != 64:
        raise WeightsError(
            checkpoint.path,
            f"it is not a ResNet-50, 101 or 152 of the common width: its third stage has {count} "
            "bottleneck units",
        )
    depth = depths[count]
    layers = tables.after(prefix, tables.resnet(RESNET, UNITS[depth]))
    return f"resnet{depth}", {**_PREPROCESSING, "stride_on": "3x3"}, layers


def _mobilenet(prefix: str) -> tuple[str, dict[str, Any], dict[str, str]]:
    # What torchvision trained dilates the convolution that lost its stride too.
    dilated = {"backbone_options": {"dilated_early": True}} if prefix == "backbone." else {}
    layers = tables.after(prefix, mobilenet_v3_large())
    return "mobilenet_v3_large", {**_PREPROCESSING, **dilated}, layers


def mobilenet_v3_large() -> dict[str, str]:
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
    return tables.with_norms(convolutions, ".0", ".1") | squeezes


def _segmentation(
    checkpoint: Checkpoint, backbone: str, shared: Mapping[str, Any], layers: dict[str, str]
) -> Checkpoint:
    needs: dict[str, Any] = {"backbone": backbone, "backbone_arguments": shared}
    if not checkpoint.has("classifier.0.convs."):  # FCN, LR-ASPP: another head on the same network
        return checkpoint.mapped(f"torchvision segmentation {backbone}", layers, **needs)
    layers |= HEAD
    is_mobile = backbone == "mobilenet_v3_large"
    own: dict[str, Any] = {
        "num_classes": checkpoint.array("classifier.4.weight", 4).shape[0],
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
    title = f"torchvision deeplabv3_{backbone}"
    return checkpoint.mapped(title, layers, model="DeepLabV3", model_arguments=own, **needs)


def _plain(
    checkpoint: Checkpoint, backbone: str, shared: Mapping[str, Any], layers: dict[str, str]
) -> Checkpoint:
    """A classifier, or a network whose classifier was taken off."""
    needs: dict[str, Any] = {"backbone": backbone, "backbone_arguments": shared}
    if "fc.weight" in checkpoint.arrays:
        layers["logits"] = "fc"
        classes = checkpoint.array("fc.weight", 2).shape[0]
        needs |= {
            "model": "SPPNet",
            "model_arguments": {"num_classes": classes, **tables.MEAN_AND_DENSE},
        }
    return checkpoint.mapped(f"torchvision {backbone}", layers, **needs)


# Places of the convolutions in `features`, between ReLUs and poolings.
_VGG16_FEATURES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)


def _is_vgg16(checkpoint: Checkpoint) -> bool:
    kernels = {f"features.{index}.weight" for index in _VGG16_FEATURES}
    found = {name for name in checkpoint.arrays if name.startswith("features.")}
    return kernels <= found and len(found) == 2 * len(kernels)


def _vgg16(checkpoint: Checkpoint) -> Checkpoint:
    places = zip(tables.vgg16(), _VGG16_FEATURES, strict=True)
    layers = {name: f"features.{place}" for name, place in places}
    shared = {**_PREPROCESSING, "backbone_options": {"pool_ceil": False}}
    needs: dict[str, Any] = {"backbone": "vgg16", "backbone_arguments": shared}
    if "classifier.6.weight" in checkpoint.arrays:
        layers |= {"dense1": "classifier.0", "dense2": "classifier.3", "logits": "classifier.6"}
        first = checkpoint.array("classifier.0.weight", 2)
        if first.shape[1] != 512 * 7 * 7:
            raise WeightsError(
                checkpoint.path,
                f"classifier.0.weight must have 512 * 7 * 7 inputs. Received: shape={first.shape}",
            )
        # torch lays the 7x7 map out channel by channel, the pyramid bin by bin.
        bins = first.reshape(len(first), -1, 7, 7).transpose(0, 2, 3, 1).reshape(len(first), -1)
        checkpoint = checkpoint.with_arrays(**{"classifier.0.weight": bins})
        needs["model"] = "SPPNet"
        needs["model_arguments"] = {
            "num_classes": checkpoint.array("classifier.6.weight", 2).shape[0],
            "levels": (7,),
            "pooling": "average",
            "dense": (len(first), checkpoint.array("classifier.3.weight", 2).shape[0]),
            "replace_pooling": False,
        }
    return checkpoint.mapped("torchvision vgg16", layers, **needs)
