"""Weights by name, as a file has them or as this package names them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from keras_deeplab.weights.errors import WeightsError
from keras_deeplab.weights.layouts import KERAS, Layout, is_depthwise

_FLOATS = ("float16", "bfloat16", "float32", "float64")  # integers would need a scale
# Names may share stored bytes: tied weights, a wrapper's second name of each.
_MAX_SHARED = 4
# One small array in a file declares a width, and a model of that width allocates all that follows
# from it before its shapes can be compared.
_LARGEST = {
    "num_classes": 100_000,
    "dense": 8192,
    "aspp_filters": 2048,
    "low_level_filters": 2048,
    "decoder_filters": 2048,
    "depth_multiplier": 2,
}


def may_hold(size: int, declared: int) -> bool:
    """Whether a file of `size` bytes may hold arrays of `declared` bytes in all.

    To be checked before anything is allocated: names of one and the same bytes, and arrays of one
    number expanded to any shape, take little room in a file.
    """
    return declared <= _MAX_SHARED * size


@dataclass(frozen=True)
class Checkpoint:
    """Arrays by name, and the network that they are the weights of.

    A reader makes one with the names and the layout of the file. `mapped` turns it into one with
    the paths of this package's layers, such as `backbone/stem_conv/kernel`, in Keras' layout.

    Attributes:
        path: The file, for messages.
        arrays: By name.
        layout: How variables are named and stored.
        title: Which network it is, such as "torchvision deeplabv3_resnet50".
        backbone: Name of the backbone, None if it is not one of this package.
        backbone_arguments: Arguments that any model on this backbone needs for these weights; those
            that a model does not have are `backbone_options`.
        model: Class of the model that the weights make up, None for a backbone alone.
        model_arguments: Further arguments of that class.
        unexpected_keys: Names in the file that are not among `arrays`, such as an optimizer's.
        folded: Whether batch norms were folded into convolutions: the norms have a `beta` only.
        output_stride: That of the network in the file, where the file has it.
        notes: What the reader chose to read, for the report.
    """

    path: str
    arrays: Mapping[str, np.ndarray]
    layout: Layout = KERAS
    title: str = "a Keras network's weights by the names of its layers"
    backbone: str | None = None
    backbone_arguments: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None
    model_arguments: Mapping[str, Any] = field(default_factory=dict)
    unexpected_keys: tuple[str, ...] = ()
    folded: bool = False
    output_stride: int | None = None
    notes: tuple[str, ...] = ()

    def has(self, prefix: str) -> bool:
        """Whether any name begins so."""
        return any(name.startswith(prefix) for name in self.arrays)

    def array(self, name: str, rank: int) -> np.ndarray:
        """An array from whose shape a network's arguments are read.

        Raises:
            WeightsError: If the file lacks it, it has another rank, or it is empty.
        """
        found = self.arrays.get(name)
        if found is None:
            raise WeightsError(self.path, f"it lacks {name}")
        if found.ndim != rank or 0 in found.shape:
            raise WeightsError(
                self.path,
                f"{name} must be a non-empty array of rank {rank}. Received: shape={found.shape}",
            )
        return found

    def with_arrays(self, **changed: np.ndarray) -> Checkpoint:
        """The same with some arrays replaced."""
        return replace(self, arrays={**self.arrays, **changed})

    def arguments(self, model: str, known: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a model for these weights.

        Args:
            model: Name of the model's class.
            known: The arguments that the class has (their values do not matter).
        """
        wanted = {
            **self.backbone_arguments,
            **(self.model_arguments if model == self.model else {}),
        }
        options = {
            **wanted.pop("backbone_options", {}),
            **{key: wanted.pop(key) for key in list(wanted) if key not in known},
        }
        if self.backbone is not None:
            wanted["backbone"] = self.backbone
        return {**wanted, "backbone_options": options} if options else wanted

    def mapped(self, title: str, layers: Mapping[str, str], **network: Any) -> Checkpoint:
        """The weights by this package's names.

        Args:
            title: Of the network.
            layers: Paths of this package's layers -> names of the file's.
            **network: `backbone`, `model` and their arguments.

        Raises:
            WeightsError: If the file lacks a layer of the network, or a model for it would be
                larger than any known one.
        """
        mapped = replace(self, title=title, layout=KERAS, **network)
        mapped._check_sizes()
        arrays: dict[str, np.ndarray] = {}
        used: set[str] = set()
        missing = []
        for path, scope in layers.items():
            variables = self.layout.variables(self.arrays, scope)
            if self.folded and not variables:
                variables = self._folded(scope)
            if not variables:
                missing.append(scope)
            for name, key in variables.items():
                used.add(key)
                arrays[f"{path}/{name}"] = self._float32(key, name, path)
        if missing:
            shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            raise WeightsError(
                self.path, f"it looks like {title}, but lacks {len(missing)} of its layers: {shown}"
            )
        others = sorted(n for n in self.arrays if n not in used and not self.layout.ignores(n))
        return replace(mapped, arrays=arrays, unexpected_keys=(*others, *self.unexpected_keys))

    def _float32(self, key: str, variable: str, path: str) -> np.ndarray:
        """An array in Keras' layout."""
        array = self.arrays[key]
        if array.dtype.name not in _FLOATS:
            raise WeightsError(
                self.path, f"{key} must hold floating point. Received: dtype={array.dtype}"
            )
        if variable == "kernel":
            array = self.layout.kernel(array, is_depthwise(path))
        with np.errstate(over="ignore"):  # what overflows is infinite, and refused later
            return np.asarray(array, np.float32)

    def _folded(self, scope: str) -> dict[str, str]:
        """The bias of the convolution that a batch norm was folded into is the norm's shift."""
        key = f"{scope.rpartition(self.layout.separator)[0]}{self.layout.separator}biases"
        return {"beta": key} if key in self.arrays else {}

    def _check_sizes(self) -> None:
        options = self.backbone_arguments.get("backbone_options", {})
        arguments = {**self.model_arguments, **options}
        for name, largest in _LARGEST.items():
            value = arguments.get(name, ())
            sizes = value if isinstance(value, tuple) else (value,)
            if max(sizes, default=0) > largest:
                raise WeightsError(
                    self.path,
                    f"the model's `{name}` must be at most {largest}. Received: {name}={value}",
                )
