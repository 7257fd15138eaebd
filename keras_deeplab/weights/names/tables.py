"""Maps of names, from paths of this package's layers to the names of a file's."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np

from keras_deeplab.backbones.mobilenet_v2 import STAGES
from keras_deeplab.backbones.resnet import UNITS
from keras_deeplab.backbones.vgg16 import BLOCKS
from keras_deeplab.weights.checkpoint import Checkpoint

Table = Mapping[str, str]


def with_norms(table: Table, conv: str, norm: str, joint: str = "_") -> dict[str, str]:
    """A convolution and its norm for each row, with what the file appends to their names."""
    return {
        f"{ours}{joint}{kind}": f"{theirs}{suffix}"
        for ours, theirs in table.items()
        for kind, suffix in (("conv", conv), ("norm", norm))
    }


def after(prefix: str, table: Table) -> dict[str, str]:
    """The rows with a prefix in front of the file's names."""
    return {ours: f"{prefix}{theirs}" for ours, theirs in table.items()}


def resnet(table: Table, depth: int) -> dict[str, str]:
    """A table's rows for all units of a ResNet.

    Its places are `{stage}`, `{unit}` and a convolution's `{index}`, which count from 1,
    `{next_stage}` and `{unit_from_0}`.
    """
    layers: dict[str, str] = {}
    for stage, count in enumerate(UNITS[depth], 1):
        for unit, index in product(range(1, count + 1), (1, 2, 3)):
            place = {"stage": stage, "unit": unit, "index": index}
            place |= {"next_stage": stage + 1, "unit_from_0": unit - 1}
            layers |= {ours.format(**place): name.format(**place) for ours, name in table.items()}
    return layers


def resnet_depth(checkpoint: Checkpoint, name: str) -> int | None:
    """The depth of a ResNet by the units of its third stage, whose arrays have a name with `{}`."""
    count = sum(name.format(unit) in checkpoint.arrays for unit in range(100))
    return {units[2]: depth for depth, units in UNITS.items()}.get(count)


# Its dense layers require maps of 7x7, in which the pyramid's bins are the pixels.
VGG16_CLASSIFIER: Mapping[str, Any] = {"levels": (7,), "replace_pooling": False}


def mobilenet_v2(first: str, later: str) -> dict[str, str]:
    """The convolutions of MobileNetV2's blocks; the names have the places `{block}`, `{part}`."""
    blocks = sum(repeats for _, _, repeats, _ in STAGES)
    return {
        f"backbone/block{block}_{part}": (later if block else first).format(block=block, part=part)
        for block, part in product(range(blocks), ("expand", "depthwise", "project"))
        if block or part != "expand"
    }


def vgg16() -> list[str]:
    """Paths of VGG16's convolutions, in order."""
    return [
        f"backbone/block{block}_conv{index}"
        for block, (_, convolutions) in enumerate(BLOCKS, 1)
        for index in range(1, convolutions + 1)
    ]


def with_background(checkpoint: Checkpoint, predictor: str) -> Checkpoint:
    """A network of one logit z, for a sigmoid, with the logits 0 and z.

    Their softmax is the sigmoid of z, and the labels are those of a threshold of 0.5.
    """
    separator, axis = (".", 0) if checkpoint.torch else ("/", -1)
    names = [name for name in checkpoint.arrays if name.startswith(f"{predictor}{separator}")]
    arrays = {name: checkpoint.arrays[name] for name in names}
    if any(array.ndim == 0 or array.shape[axis] != 1 for array in arrays.values()):
        return checkpoint
    return checkpoint.with_arrays(
        {
            name: np.concatenate([np.zeros_like(array), array], axis)
            for name, array in arrays.items()
        }
    )


def classifier(num_classes: int, **arguments: Any) -> dict[str, Any]:
    """A model that is a classifier: by default the mean over the image and one dense layer."""
    own = {"levels": (1,), "pooling": "average", "dense": (), **arguments}
    return {"model": "SPPNet", "model_arguments": {"num_classes": num_classes, **own}}
