"""A file of weights as it was read: arrays by the names that their program gave them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from keras_deeplab.weights.errors import WeightsError
from keras_deeplab.weights.layouts import Layout, is_depthwise
from keras_deeplab.weights.source import Source

_FLOATS = ("float16", "bfloat16", "float32", "float64")  # integers would need a scale
# Names may share stored bytes: tied weights, a wrapper's second name of each.
_MAX_SHARED = 4
# What a model may be built with because a file says so: one small array declares a width, and the
# model allocates all that follows from it before its shapes can be compared.
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

    Asked before anything is allocated: names of one and the same bytes, and arrays of one number
    expanded to any shape, take little room in a file.
    """
    return declared <= _MAX_SHARED * size


@dataclass(frozen=True)
class Checkpoint:
    """Arrays with the layout of their program.

    Attributes:
        path: The file, for messages.
        arrays: By name.
        layout: How variables are named and stored.
        left_over: Names that the reader itself set aside, such as an optimizer's slots.
        folded: Whether batch norms were folded into convolutions, which then have biases.
        output_stride: That of the network in the file, where the file says it.
        notes: What the reader chose to read, for the report.
    """

    path: str
    arrays: Mapping[str, np.ndarray]
    layout: Layout
    left_over: tuple[str, ...] = ()
    folded: bool = False
    output_stride: int | None = None
    notes: tuple[str, ...] = ()

    def has(self, prefix: str) -> bool:
        """Tells whether any name begins so."""
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

    def source(self, title: str, layers: Mapping[str, str], **needs: Any) -> Source:
        """The weights in this package's names.

        Args:
            title: Of the network.
            layers: Paths of this package's layers -> names of the file's.
            **needs: Further fields of `Source`.

        Raises:
            WeightsError: If the file lacks a layer of the network, or asks for a model that is
                larger than any that is known.
        """
        self._check_sizes(needs)
        values: dict[str, np.ndarray] = {}
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
                array = self.arrays[key]
                if name == "kernel":
                    array = self.layout.kernel(array, is_depthwise(path))
                if array.dtype.name not in _FLOATS:
                    raise WeightsError(
                        self.path, f"{key} must hold floating point. Received: dtype={array.dtype}"
                    )
                with np.errstate(over="ignore"):  # what overflows is infinite, and refused later
                    values[f"{path}/{name}"] = np.asarray(array, np.float32)
        if missing:
            shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            raise WeightsError(
                self.path, f"it looks like {title}, but lacks {len(missing)} of its layers: {shown}"
            )
        others = (
            name
            for name in self.arrays
            if name not in used
            and name.rsplit(self.layout.separator, 1)[-1] not in self.layout.bookkeeping
        )
        left_over = (*sorted(others), *self.left_over)
        needs |= {"left_over": left_over, "folded": self.folded, "notes": self.notes}
        return Source(self.path, title, values, **needs)

    def _check_sizes(self, needs: Mapping[str, Any]) -> None:
        arguments = {
            **needs.get("own", {}),
            **needs.get("shared", {}).get("backbone_options", {}),
        }
        for name, largest in _LARGEST.items():
            value = arguments.get(name, ())
            sizes = value if isinstance(value, tuple) else (value,)
            if max(sizes, default=0) > largest:
                raise WeightsError(
                    self.path,
                    f"the model's `{name}` must be at most {largest}. Received: {name}={value}",
                )

    def _folded(self, scope: str) -> dict[str, str]:
        """The bias of the convolution that a batch norm was folded into is the norm's shift."""
        key = f"{scope.rpartition(self.layout.separator)[0]}{self.layout.separator}biases"
        return {"beta": key} if key in self.arrays else {}
