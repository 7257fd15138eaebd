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
import hashlib
import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from keras_deeplab.files import move
from keras_deeplab.weights.errors import WeightsError, shortened

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Published:
    """One file of weights, as its publisher describes it.

    A backbone alone fits any model: its `model` and `mean_iou` (in percent) are None. `width` is
    the backbone's depth multiplier. The licence is that of the publisher's code; none is stated for
    the files themselves. `file_hash` is `"md5:"` or `"sha256:"` and the first digits of the file's
    hash (torchvision has eight in its file names), None where the publisher gives none.
    """

    name: str
    model: str | None
    backbone: str
    width: float
    classes: int
    mean_iou: float | None
    note: str
    license: str
    url: str
    file_hash: str | None

    @property
    def network(self) -> str:
        """The backbone, with its width where that is not 1, as files differ in it."""
        return _network(self.backbone, self.width)

    @property
    def file_name(self) -> str:
        """The name of the file, by its address."""
        return self.url.rpartition("/")[2]


def _network(backbone: str, width: float) -> str:
    return backbone if width == 1 else f"{backbone}, depth_multiplier {width:g}"


def _entries() -> tuple[Published, ...]:
    numbers = {"width": float, "classes": int, "mean_iou": float}
    text = Path(__file__).with_name("published.csv").read_text(encoding="utf-8")
    return tuple(
        Published(**{k: numbers.get(k, str)(value) if value else None for k, value in row.items()})
        for row in csv.DictReader(text.splitlines())
    )


PUBLISHED = _entries()


def find_published(
    name: str, model: str | None, backbone: str, options: Mapping[str, Any] | None = None
) -> Published:
    """The published weights for a model, None for any, on a backbone with these options.

    Of the options the depth multiplier selects the file. An error lists the weights that there are.
    """
    network = _network(backbone, (options or {}).get("depth_multiplier") or 1)
    fitting = [
        entry
        for entry in PUBLISHED
        if entry.network == network and (model is None or entry.model in (None, model))
    ]
    for entry in fitting:
        if entry.name == name:
            return entry
    there = ", ".join(repr(entry.name) for entry in fitting) or "none"
    others = [f"{e.model or 'any model'} on {e.network}" for e in PUBLISHED if e.name == name]
    reason = f"no such weights are published for {model or 'any model'} on {network}; there are: "
    reason += f"{there}. {name!r} is there for {'; '.join(others) or 'none'}"
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
            "license": entry.license,
            "file": entry.url,
        }
        for entry in PUBLISHED
    ]


def markdown() -> str:
    """The registry as a table for the README."""
    rows = [{**row, "file": f"[file]({row['file']})"} for row in table()]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(map(str, row.values()) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def fetch(url: str, file_hash: str | None, name: str) -> Path:
    """Returns a file from the cache, after downloading it where it is not there yet.

    A complete file with the right hash is moved into the cache, the folder `keras_deeplab` in
    `$KERAS_HOME` or `~/.keras`, so that an interruption leaves nothing. A file in the cache that
    does not have the hash is downloaded again.
    """
    folder = Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser() / "keras_deeplab"
    target = folder / name
    try:
        if target.is_file():
            if _matches(target, file_hash):
                return target
            logger.warning("%s does not match its hash; downloading it again from %s", target, url)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as temporary:
            file = Path(keras.utils.get_file(name, url, cache_dir=temporary, cache_subdir=""))
            if not _matches(file, file_hash):
                raise ValueError(f"it is empty, or its hash is not {file_hash}")
            move(file, target)
    except Exception as error:  # get_file raises a plain Exception for errors of the connection
        advice = "set KERAS_HOME to a folder with more space, or download it and pass its path"
        reason = f"{target} cannot be downloaded: {shortened(error)}. Try again later, {advice}"
        raise WeightsError(url, reason) from error
    return target


def _matches(file: Path, file_hash: str | None) -> bool:
    if file_hash is None or file.stat().st_size == 0:
        return file.stat().st_size > 0
    algorithm, _, digits = file_hash.partition(":")
    with file.open("rb") as opened:
        # Pythons that forbid MD5 for secrets allow it to detect damage.
        digest = hashlib.file_digest(opened, lambda: hashlib.new(algorithm, usedforsecurity=False))
    return digest.hexdigest().startswith(digits)
