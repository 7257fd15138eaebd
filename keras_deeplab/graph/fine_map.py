"""A tensor of a network under rewriting."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import keras

from keras_deeplab.graph.fine_padding import NO_SHIFT, Phase
from keras_deeplab.graph.network import Call

Pair = tuple[int, int]


@dataclass(frozen=True)
class FineMap:
    """A tensor of the new network, and where the original's samples lie in it.

    Sample `i` of the original tensor is sample `rate * i + phase` of this one.

    Attributes:
        tensor: The symbolic tensor.
        stride: Against the image, (height, width); None for a tensor that is no map.
        rate: How much finer it is than the original.
        phase: See above.
        pads: Zero padding that waits for its consumer, in pixels of the original map.
        pad_call: The padding operation that `pads` come from.
    """

    tensor: keras.KerasTensor
    stride: tuple[Any, Any] | None
    rate: Pair = (1, 1)
    phase: tuple[Phase, Phase] = (NO_SHIFT, NO_SHIFT)
    pads: tuple[Pair, Pair] | None = None
    pad_call: Call | None = None

    @property
    def is_fine(self) -> bool:
        """Whether it is finer than the original along any axis."""
        return self.rate != (1, 1)

    def behind(self, strides: Pair, lost: tuple[bool, bool]) -> FineMap:
        """The state behind an operation with strides, some of which it loses."""
        stride, rate = list(self.stride), list(self.rate)
        for axis in (0, 1):
            if lost[axis]:
                rate[axis] *= strides[axis]
            else:
                stride[axis] *= strides[axis]
        return replace(self, stride=tuple(stride), rate=tuple(rate), pads=None, pad_call=None)


def lost_strides(call: Call, source: FineMap, strides: Pair, cap: int) -> tuple[bool, bool]:
    """Along which axes an operation must give up its stride."""
    lost = tuple(
        own > 1 and (stride * own > cap or rate > 1)
        for own, stride, rate in zip(strides, source.stride, source.rate, strict=True)
    )
    kept = any(own > 1 and not gone for own, gone in zip(strides, lost, strict=True))
    if kept and (any(lost) or source.is_fine):
        raise ValueError(
            f"The layer '{call.path}' would keep a stride along one axis and be dilated along the "
            f"other at output stride {cap}; its strides are {strides}."
        )
    return lost
