"""Maps of names, written as rows with places: `{"block{block}_{part}": "block_{block}/{part}"}`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any

from keras_deeplab.backbones.vgg16 import BLOCKS

Table = Mapping[str, str]

# Arguments of SPPNet for a classifier: the mean over the image, one dense layer.
MEAN_AND_DENSE = {"levels": (1,), "pooling": "average", "dense": ()}


def vgg16() -> list[str]:
    """Paths of VGG16's convolutions, in order."""
    return [
        f"backbone/block{block}_conv{index}"
        for block, (_, convolutions) in enumerate(BLOCKS, 1)
        for index in range(1, convolutions + 1)
    ]


def expanded(table: Table, **places: Iterable[Any]) -> dict[str, str]:
    """Every row with all combinations of the values of its places."""
    combinations = [dict(zip(places, values, strict=True)) for values in product(*places.values())]
    return {
        ours.format(**place): theirs.format(**place)
        for place in combinations
        for ours, theirs in table.items()
    }


def resnet(table: Table, units: Iterable[int]) -> dict[str, str]:
    """Rows for all units of a ResNet.

    Args:
        table: Rows with the places `stage`, `unit` and `index` of a convolution, which count from
            1, `next_stage` and `unit_from_0`.
        units: Number of units in each stage.
    """
    layers: dict[str, str] = {}
    for stage, count in enumerate(units, 1):
        for unit in range(1, count + 1):
            layers |= expanded(
                table,
                stage=[stage],
                next_stage=[stage + 1],
                unit=[unit],
                unit_from_0=[unit - 1],
                index=(1, 2, 3),
            )
    return layers


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
