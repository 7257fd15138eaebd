"""A file of weights as it was read: arrays by the names that their program gave them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from keras_deeplab.weights.errors import WeightsError
from keras_deeplab.weights.layouts import Layout, is_depthwise
from keras_deeplab.weights.source import Source


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
    """

    path: str
    arrays: Mapping[str, np.ndarray]
    layout: Layout
    left_over: tuple[str, ...] = ()
    folded: bool = False
    output_stride: int | None = None

    def has(self, prefix: str) -> bool:
        """Tells whether any name begins so."""
        return any(name.startswith(prefix) for name in self.arrays)

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
            WeightsError: If the file lacks a layer of the network.
        """
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
        return Source(self.path, title, values, left_over=left_over, folded=self.folded, **needs)

    def _folded(self, scope: str) -> dict[str, str]:
        """The bias of the convolution that a batch norm was folded into is the norm's shift."""
        key = f"{scope.rpartition(self.layout.separator)[0]}{self.layout.separator}biases"
        return {"beta": key} if key in self.arrays else {}
