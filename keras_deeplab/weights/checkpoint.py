"""Weights by name, as a file has them or as this package names them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from keras_deeplab.weights.errors import WeightsError, listed

_FLOATS = ("float16", "bfloat16", "float32", "float64")  # integers would need a scale
# Names may share stored bytes: tied weights, a wrapper's second name of each.
_MAX_SHARED = 4


def may_hold(size: int, declared: int) -> bool:
    """Whether a file of `size` bytes may hold arrays of `declared` bytes in all.

    To be checked before anything is allocated: names of one and the same bytes, and arrays of one
    number expanded to any shape, take little room in a file.
    """
    return declared <= _MAX_SHARED * size


@dataclass(frozen=True)
class Layout:
    """How a framework names the variables of a layer, as Keras' names by its own."""

    separator: str
    norm: Mapping[str, str]
    other: Mapping[str, str]
    bookkeeping: str = ""


_NORM = {name: name for name in ("gamma", "beta", "moving_mean", "moving_variance")}
TORCH = Layout(
    ".",
    {
        "weight": "gamma",
        "bias": "beta",
        "running_mean": "moving_mean",
        "running_var": "moving_variance",
    },
    {"weight": "kernel", "bias": "bias"},
    bookkeeping="num_batches_tracked",
)
TF1 = Layout(
    "/",
    _NORM,
    {"weights": "kernel", "depthwise_weights": "kernel", "biases": "bias"},
    bookkeeping="global_step",
)
KERAS = Layout("/", _NORM, {"kernel": "kernel", "depthwise_kernel": "kernel", "bias": "bias"})


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
        """An array from whose shape a network's arguments are read; it must have this rank."""
        found = self.arrays.get(name)
        if found is None:
            raise WeightsError(self.path, f"it lacks {name}")
        if found.ndim != rank or 0 in found.shape:
            raise WeightsError(
                self.path,
                f"{name} must be a non-empty array of rank {rank}. Received: shape={found.shape}",
            )
        return found

    def width(self, name: str, rank: int = 4, largest: int = 2048) -> int:
        """The number of a kernel's outputs, from which an argument of its network is read.

        One small array in a file declares a width, and a model of that width allocates all that
        follows from it before its shapes can be compared.
        """
        width = self.array(name, rank).shape[0 if self.layout is TORCH else -1]
        if width > largest:
            raise WeightsError(
                self.path, f"{name} must have at most {largest} outputs. Received: {width}"
            )
        return width

    def with_arrays(self, changed: Mapping[str, np.ndarray]) -> Checkpoint:
        """The same with some arrays replaced."""
        return replace(self, arrays={**self.arrays, **changed})

    def arguments(self, model: str, known: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a model for these weights, of those `known` to its class."""
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
            layers: Paths of this package's layers -> names of the file's, which must have all.
            **network: `backbone`, `model` and their arguments.
        """
        arrays: dict[str, np.ndarray] = {}
        used: set[str] = set()
        missing = []
        for path, scope in layers.items():
            variables = self._variables(path, scope)
            if not variables:
                missing.append(scope)
            for name, key in variables.items():
                used.add(key)
                arrays[f"{path}/{name}"] = self._as_keras(key, name, path)
        if missing:
            raise WeightsError(
                self.path,
                f"it looks like {title}, but lacks {len(missing)} of its layers: {listed(missing)}",
            )
        others = sorted(
            name
            for name in self.arrays
            if name not in used
            and name.rpartition(self.layout.separator)[2] != self.layout.bookkeeping
        )
        return replace(
            self,
            title=title,
            layout=KERAS,
            arrays=arrays,
            unexpected_keys=(*others, *self.unexpected_keys),
            **network,
        )

    def _variables(self, path: str, scope: str) -> dict[str, str]:
        """Keras' names of a layer's variables -> their keys in the file."""
        separator = self.layout.separator
        is_norm = path.endswith("norm")
        keys = {
            ours: f"{scope}{separator}{theirs}"
            for theirs, ours in (self.layout.norm if is_norm else self.layout.other).items()
            if f"{scope}{separator}{theirs}" in self.arrays
        }
        if self.folded and is_norm and not keys:
            # The bias of the convolution that the norm was folded into is the norm's shift.
            bias = f"{scope.rpartition(separator)[0]}{separator}biases"
            keys = {"beta": bias} if bias in self.arrays else {}
        return keys

    def _as_keras(self, key: str, variable: str, path: str) -> np.ndarray:
        array = self.arrays[key]
        if array.dtype.name not in _FLOATS:
            raise WeightsError(
                self.path, f"{key} must hold floating point. Received: dtype={array.dtype}"
            )
        if variable == "kernel" and self.layout is TORCH:
            if array.ndim == 2:  # dense: (out, in)
                array = array.T
            if array.ndim == 4:  # (out, in, h, w), depthwise (channels, 1, h, w)
                is_depthwise = "depthwise" in path.rpartition("/")[2]
                array = array.transpose((2, 3, 0, 1) if is_depthwise else (2, 3, 1, 0))
        with np.errstate(over="ignore"):  # what overflows is infinite, and refused later
            return np.asarray(array, np.float32)
