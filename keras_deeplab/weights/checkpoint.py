"""Weights by name, as a file has them or as this package names them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from keras_deeplab.names import first_few
from keras_deeplab.weights.errors import WeightsError

_FLOATS = ("float16", "bfloat16", "float32", "float64")  # integers would need a scale
RGB = 3
# Names may share stored bytes: tied weights, a wrapper's second name of each.
_MAX_SHARED = 4
# A layer's variables by their names in Keras, TensorFlow 1 and PyTorch.
_OF_NORMS = {
    "gamma": ("gamma", "weight"),
    "beta": ("beta", "bias"),
    "moving_mean": ("moving_mean", "running_mean"),
    "moving_variance": ("moving_variance", "running_var"),
}
_OF_OTHERS = {
    "kernel": ("kernel", "depthwise_kernel", "weights", "depthwise_weights", "weight"),
    "bias": ("bias", "biases"),
}
COUNTERS = ("num_batches_tracked", "global_step")
COUNTERS += ("total_ops", "total_params")  # of the profiler thop, in every module


def may_hold(size: int, declared: int) -> bool:
    """Whether a file of `size` bytes may hold arrays of `declared` bytes, before allocating them.

    Names of the same bytes and arrays of one number expanded to any shape take little room.
    """
    return declared <= _MAX_SHARED * size


@dataclass(frozen=True)
class Checkpoint:
    """Arrays by name, and the network that they are the weights of.

    A reader makes one with the names of the file, `mapped` one with the paths of this package's
    layers, such as `backbone/stem_conv/kernel`, and kernels as Keras has them.

    Attributes:
        path: The file, for messages.
        arrays: By name.
        torch: Whether names and kernels are PyTorch's: `conv1.weight`, outputs first.
        title: Which network it is, such as "torchvision deeplabv3_resnet50".
        backbone: Name of the backbone, None if it is not one of this package.
        backbone_arguments: Arguments that any model on this backbone needs for these weights; those
            that a model does not have are `backbone_options`.
        model: Class of the model that the weights make up, None for a backbone alone.
        model_arguments: Further arguments of that class.
        unexpected: Names in the file that the network does not have.
        folded: Whether batch norms were folded into convolutions: the norms have a `beta` only.
    """

    path: str
    arrays: Mapping[str, np.ndarray]
    torch: bool = False
    title: str | None = None
    backbone: str | None = None
    backbone_arguments: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None
    model_arguments: Mapping[str, Any] = field(default_factory=dict)
    unexpected: tuple[str, ...] = ()
    folded: bool = False

    def __str__(self) -> str:
        names = first_few(sorted(self.arrays))
        return self.title or f"{len(self.arrays)} arrays of no known network, among them {names}"

    def has(self, prefix: str) -> bool:
        """Whether any name begins so."""
        return any(name.startswith(prefix) for name in self.arrays)

    def array(self, name: str, rank: int) -> np.ndarray:
        """An array from whose shape a network's arguments are read; it must have this rank."""
        found = self.arrays.get(name)
        if found is None or found.ndim != rank or 0 in found.shape:
            shape = getattr(found, "shape", None)
            rule = f"{name} must be a non-empty array of rank {rank}. Received: shape={shape}"
            raise WeightsError(self.path, rule)
        return found

    def width(self, name: str, rank: int = 4, largest: int = 2048) -> int:
        """The number of a kernel's outputs, from which an argument of its network is read.

        A small file may declare a width, and a model of it allocates all that follows from it.
        """
        width = self.array(name, rank).shape[0 if self.torch else -1]
        if width > largest:
            rule = f"{name} must have at most {largest} outputs. Received: {width}"
            raise WeightsError(self.path, rule)
        return width

    def with_arrays(self, changed: Mapping[str, np.ndarray]) -> Checkpoint:
        """The same with some arrays replaced."""
        return replace(self, arrays={**self.arrays, **changed})

    def arguments(self, model: str, known: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a model for these weights, of those `known` to its class."""
        own = self.model_arguments if model == self.model else {}
        wanted = {**self.backbone_arguments, **own}
        options = wanted.pop("backbone_options", {})
        options = {**options, **{k: v for k, v in wanted.items() if k not in known}}
        wanted = {key: value for key, value in wanted.items() if key in known}
        if self.backbone is not None:
            wanted["backbone"] = self.backbone
        return {**wanted, "backbone_options": options} if options else wanted

    def mapped(self, title: str, layers: Mapping[str, str], **network: Any) -> Checkpoint:
        """The weights of a network by this package's names.

        `layers` has the names in the file, which must have all, by the paths of our layers.
        """
        arrays: dict[str, np.ndarray] = {}
        used: dict[str, str] = {}
        missing = []
        for path, scope in layers.items():
            variables = self._variables(path, scope)
            if not variables:
                missing.append(scope)
            for name, key in variables.items():
                arrays.pop(used.get(key), None)  # a folded bias moves from convolution to norm
                used[key] = f"{path}/{name}"
                arrays[used[key]] = self._as_keras(key, name, path)
        if missing:
            what = f"{len(missing)} of its layers: {first_few(missing)}"
            raise WeightsError(self.path, f"it looks like {title}, but lacks {what}")
        channels = next((a.shape[2] for a in arrays.values() if a.ndim == 4), RGB)
        if channels != RGB:
            shape = {"input_shape": (None, None, channels)}
            network["backbone_arguments"] = {**network["backbone_arguments"], **shape}
        return replace(
            self,
            title=title,
            torch=False,
            arrays=arrays,
            unexpected=tuple(
                name for name in self.arrays if name not in used and not name.endswith(COUNTERS)
            ),
            **network,
        )

    def _variables(self, path: str, scope: str) -> dict[str, str]:
        """Keras' names of a layer's variables -> their keys in the file."""
        is_norm, separator = path.endswith("norm"), "." if self.torch else "/"
        keys = {
            ours: key
            for ours, names in (_OF_NORMS if is_norm else _OF_OTHERS).items()
            for theirs in names
            if (key := f"{scope}{separator}{theirs}") in self.arrays
        }
        if self.folded and is_norm and not keys:
            # The bias of the convolution that the norm was folded into is the norm's shift.
            bias = f"{scope.rpartition(separator)[0]}{separator}biases"
            keys = {"beta": bias} if bias in self.arrays else {}
        return keys

    def _as_keras(self, key: str, variable: str, path: str) -> np.ndarray:
        array = self.arrays[key]
        if array.dtype.name not in _FLOATS:
            rule = f"{key} must hold floating point. Received: dtype={array.dtype}"
            raise WeightsError(self.path, rule)
        if variable == "kernel" and self.torch:
            if array.ndim == 2:  # dense: (out, in)
                array = array.T
            if array.ndim == 4:  # (out, in, h, w), depthwise (channels, 1, h, w)
                is_depthwise = "depthwise" in path.rpartition("/")[2]
                array = array.transpose((2, 3, 0, 1) if is_depthwise else (2, 3, 1, 0))
        with np.errstate(over="ignore"):  # what overflows is infinite, and refused later
            return np.asarray(array, np.float32)
