"""How frameworks name and store the variables of a layer, and how they become Keras'."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

Names = Mapping[str, str]


def _torch_kernel(array: np.ndarray, depthwise: bool) -> np.ndarray:
    if array.ndim == 2:  # dense: (out, in)
        return array.T
    if array.ndim != 4:  # no kernel: its shape fits no layer, which the transfer reports
        return array
    # Convolutions are (out, in, h, w), depthwise ones (channels, 1, h, w).
    return array.transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0))


def _as_it_is(array: np.ndarray, depthwise: bool) -> np.ndarray:  # noqa: ARG001
    return array


@dataclass(frozen=True)
class Layout:
    """The variables of a layer in a framework's files.

    Attributes:
        separator: Between a layer's name and its variable's.
        norm: Names of a batch norm's variables -> Keras' names.
        other: The same for all other layers.
        bookkeeping: Last parts of names that hold no weights, such as counters.
        kernel: Turns a kernel, given whether it is depthwise, into Keras' layout.
    """

    separator: str
    norm: Names
    other: Names
    bookkeeping: tuple[str, ...] = ()
    kernel: Callable[[np.ndarray, bool], np.ndarray] = _as_it_is

    def ignores(self, name: str) -> bool:
        """Whether a name holds no weights."""
        return name.rsplit(self.separator, 1)[-1] in self.bookkeeping

    def variables(self, arrays: Mapping[str, np.ndarray], scope: str) -> dict[str, str]:
        """Keras' names of a layer's variables -> their keys in the file."""
        is_norm = any(
            f"{scope}{self.separator}{theirs}" in arrays
            for theirs in self.norm
            if theirs not in self.other
        )
        found = {}
        for theirs, ours in (self.norm if is_norm else self.other).items():
            key = f"{scope}{self.separator}{theirs}"
            if key in arrays:
                found[ours] = key
        return found


_NORM = {name: name for name in ("gamma", "beta", "moving_mean", "moving_variance")}

TORCH = Layout(
    separator=".",
    norm={
        "weight": "gamma",
        "bias": "beta",
        "running_mean": "moving_mean",
        "running_var": "moving_variance",
    },
    other={"weight": "kernel", "bias": "bias"},
    bookkeeping=("num_batches_tracked",),
    kernel=_torch_kernel,
)
TF1 = Layout(
    separator="/",
    norm=_NORM,
    other={"weights": "kernel", "depthwise_weights": "kernel", "biases": "bias"},
    bookkeeping=("global_step",),
)
KERAS = Layout(
    separator="/",
    norm=_NORM,
    other={"kernel": "kernel", "depthwise_kernel": "kernel", "bias": "bias"},
)


def is_depthwise(path: str) -> bool:
    """Whether a layer of this package is a depthwise convolution, by its path."""
    return "depthwise" in path.rsplit("/", 1)[-1]
