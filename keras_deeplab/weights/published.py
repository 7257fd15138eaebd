"""Weights that others have published for networks of this package.

`published.csv` has them. Addresses, figures, numbers of classes and hashes are the publishers':

- The authors: tensorflow/models (commit d318246c), research/deeplab/g3doc/model_zoo.md and
  datasets/data_generator.py. Left out, as no model here is like them: xception71_dpc_* (dense
  prediction cell), mobilenetv3_* and EdgeTPU-DeepLab, *_8bit (trained to be quantised).
- torchvision: models/segmentation/deeplabv3.py (commit 0289e3fe), resnet.py and vgg.py. The last
  eight digits of a file's name begin its SHA-256. Its DeepLabV3 starts from IMAGENET1K_V1.
- keras.applications of Keras 3.15, which has no hashes for mobilenet_v2.py.
- kazuto1011/deeplab-pytorch: README.md and configs/*.yaml; no hashes.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_deeplab.weights.errors import WeightsError

_WIDTH = "depth_multiplier"


@dataclass(frozen=True)
class Published:
    """One file of weights, as its publisher describes it.

    Attributes:
        name: The name that users give, such as "pascal_voc".
        model: Name of the model's class, None for a backbone alone, which fits any model.
        backbone: A name of `keras_deeplab.backbones`.
        width: The backbone's depth multiplier.
        classes: Number of classes that it was trained for.
        mean_iou: In percent, as the publisher gives it, None for a backbone alone.
        note: What was measured, and further facts.
        licence: Of the publisher's code; none is stated for the files themselves.
        url: Address of the file.
        file_hash: As `download.fetch` takes it, None where the publisher gives none.
    """

    name: str
    model: str | None
    backbone: str
    width: float
    classes: int
    mean_iou: float | None
    note: str
    licence: str
    url: str
    file_hash: str | None

    @property
    def network(self) -> str:
        """The backbone, with its width where that is not 1, as files differ in it."""
        return _network(self.backbone, {_WIDTH: self.width})

    @property
    def file_name(self) -> str:
        """The name of the file, by its address."""
        return self.url.rpartition("/")[2]


def _network(backbone: str, options: Mapping[str, Any] | None) -> str:
    width = (options or {}).get(_WIDTH) or 1
    return backbone if width == 1 else f"{backbone}, {_WIDTH} {width:g}"


def _entries() -> Iterator[Published]:
    numbers = {"width": float, "classes": int, "mean_iou": float}
    path = Path(__file__).with_name("published.csv")
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            yield Published(
                **{key: numbers.get(key, str)(text) if text else None for key, text in row.items()}
            )


PUBLISHED: tuple[Published, ...] = tuple(_entries())


def find(
    name: str, model: str | None, backbone: str, options: Mapping[str, Any] | None = None
) -> Published:
    """The published weights of a name for a model; an error lists those that there are.

    Args:
        name: Such as "pascal_voc".
        model: Name of the model's class, such as "DeepLabV3", None for any.
        backbone: A name of `keras_deeplab.backbones`.
        options: The model's `backbone_options`, of which the depth multiplier selects the file.
    """
    network = _network(backbone, options)
    fitting = {
        entry.name: entry
        for entry in PUBLISHED
        if (model is None or entry.model in (None, model)) and entry.network == network
    }
    if name in fitting:
        return fitting[name]
    reason = f"no such weights are published for {model or 'any model'} on {network}; there are: "
    reason += ", ".join(map(repr, fitting)) or "none"
    others = [f"{e.model or 'any model'} on {e.network}" for e in PUBLISHED if e.name == name]
    if others:
        reason += f". {name!r} is there for {'; '.join(others)}"
    raise WeightsError(name, reason)


def table() -> list[dict[str, Any]]:
    """The registry as rows for a table, one key for each column."""
    return [
        {
            "weights": entry.name,
            "model": entry.model or "any",
            "backbone": entry.network,
            "classes": entry.classes,
            "mean IoU": "" if entry.mean_iou is None else f"{entry.mean_iou:.2f}",
            "measured on": entry.note,
            "licence": entry.licence,
            "file": entry.url,
        }
        for entry in PUBLISHED
    ]


def markdown() -> str:
    """The registry as a table for the README."""
    rows = [{**row, "file": f"[file]({row['file']})"} for row in table()]
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + " --- |" * len(rows[0])]
    lines += ["| " + " | ".join(map(str, row.values())) + " |" for row in rows]
    return "\n".join(lines) + "\n"
