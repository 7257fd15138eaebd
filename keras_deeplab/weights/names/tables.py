"""Maps of names, written as rows with places: `{"block{block}_{part}": "block_{block}/{part}"}`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any

from keras_deeplab.backbones.resnet import UNITS
from keras_deeplab.backbones.vgg16 import BLOCKS
from keras_deeplab.weights.checkpoint import Checkpoint

Table = Mapping[str, str]


def expanded(table: Table, **places: Iterable[Any]) -> dict[str, str]:
    """Every row with all combinations of the values of its places."""
    combinations = [dict(zip(places, values, strict=True)) for values in product(*places.values())]
    return {
        ours.format(**place): theirs.format(**place)
        for place in combinations
        for ours, theirs in table.items()
    }


def with_norms(table: Table, conv: str, norm: str, joint: str = "_") -> dict[str, str]:
    """A convolution and its batch norm for each row, with what the file appends to their names."""
    return {
        f"{ours}{joint}{kind}": f"{theirs}{suffix}"
        for ours, theirs in table.items()
        for kind, suffix in (("conv", conv), ("norm", norm))
    }


def after(prefix: str, table: Table) -> dict[str, str]:
    """The rows with a prefix in front of the file's names."""
    return {ours: f"{prefix}{theirs}" for ours, theirs in table.items()}


def resnet(table: Table, depth: int) -> dict[str, str]:
    """Rows for all units of a ResNet.

    Places are `stage`, `unit` and a convolution's `index`, which count from 1, `next_stage` and
    `unit_from_0`.
    """
    layers: dict[str, str] = {}
    for stage, count in enumerate(UNITS[depth], 1):
        for unit in range(1, count + 1):
            place = {"stage": [stage], "next_stage": [stage + 1]}
            place |= {"unit": [unit], "unit_from_0": [unit - 1], "index": (1, 2, 3)}
            layers |= expanded(table, **place)
    return layers


def resnet_depth(checkpoint: Checkpoint, name: str) -> int | None:
    """The depth of a ResNet by the units of its third stage, whose arrays have a name with `{}`."""
    count = sum(name.format(unit) in checkpoint.arrays for unit in range(100))
    return {units[2]: depth for depth, units in UNITS.items()}.get(count)


# Its dense layers require maps of 7x7, in which the pyramid's bins are the pixels.
VGG16_CLASSIFIER: Mapping[str, Any] = {"levels": (7,), "replace_pooling": False}


def vgg16() -> list[str]:
    """Paths of VGG16's convolutions, in order."""
    return [
        f"backbone/block{block}_conv{index}"
        for block, (_, convolutions) in enumerate(BLOCKS, 1)
        for index in range(1, convolutions + 1)
    ]


def classifier(num_classes: int, **arguments: Any) -> dict[str, Any]:
    """A model that is a classifier: by default the mean over the image and one dense layer."""
    own = {"levels": (1,), "pooling": "average", "dense": (), **arguments}
    return {"model": "SPPNet", "model_arguments": {"num_classes": num_classes, **own}}
