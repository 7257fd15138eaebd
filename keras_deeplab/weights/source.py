"""Weights of another program in this package's names and layout, and what they need of a model."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from keras_deeplab.weights.archive import check_unpacked
from keras_deeplab.weights.errors import WeightsError

_META = "source"


@dataclass(frozen=True)
class Source:
    """Weights by the paths of this package's layers, with the arguments that they want.

    Attributes:
        path: The file, for messages.
        title: Which network it holds, such as "torchvision deeplabv3_resnet50".
        values: `{layer path/variable: array}`, such as `backbone/stem_conv/kernel`, in Keras'
            layout.
        backbone: Name of the backbone, None if it is none of this package's.
        shared: Arguments that any model on this backbone needs for these weights; what is no
            argument of a model is one of its `backbone_options`.
        model: Class of the model that the weights make up, None for a backbone alone.
        own: The arguments of that class beyond `shared`.
        left_over: Variables of the file that are not among `values`.
        folded: Whether batch norms were folded into convolutions: the norms have a `beta` only.
        notes: What the reader chose to read, for the report.
    """

    path: str
    title: str
    values: Mapping[str, np.ndarray]
    backbone: str | None = None
    shared: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None
    own: Mapping[str, Any] = field(default_factory=dict)
    left_over: tuple[str, ...] = ()
    folded: bool = False
    notes: tuple[str, ...] = ()

    def arguments(self, model: str, known: Mapping[str, Any]) -> dict[str, Any]:
        """What a model of a class is to be built with for these weights.

        Args:
            model: The class's name.
            known: The arguments that the class has (their values do not matter).
        """
        wanted = {**self.shared, **(self.own if model == self.model else {})}
        options = {
            **dict(wanted.pop("backbone_options", {})),
            **{key: wanted.pop(key) for key in list(wanted) if key not in known},
        }
        if self.backbone is not None:
            wanted["backbone"] = self.backbone
        return {**wanted, "backbone_options": options} if options else wanted

    def write(self, path: Path) -> None:
        """Keeps the converted weights in one file, written aside and renamed."""
        meta = {
            "title": self.title,
            "backbone": self.backbone,
            "shared": dict(self.shared),
            "model": self.model,
            "own": dict(self.own),
            "left_over": list(self.left_over),
            "folded": self.folded,
            "notes": list(self.notes),
        }
        aside = path.with_name(f".{os.getpid()}-{path.name}")
        try:
            with aside.open("wb") as file:
                np.savez(file, **{_META: np.array(json.dumps(meta))}, **self.values)
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)

    @classmethod
    def read(cls, path: Path) -> Source:
        """Reads what `write` wrote.

        Raises:
            WeightsError: If the file is damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                check_unpacked(file.zip, path.stat().st_size)
                values = {name: file[name] for name in file.files if name != _META}
                meta = json.loads(str(file[_META]))
            meta |= {key: tuple(meta.get(key, ())) for key in ("left_over", "notes")}
            return cls(path=str(path), values=values, **meta)
        except Exception as error:  # zipfile, zlib, json and numpy each have their own
            raise WeightsError(path, f"it is damaged ({error})") from error
