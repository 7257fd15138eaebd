"""How a dilated operation on a finer map is padded, and where that puts its samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from keras_deeplab.graph.axis_rules import same_padding
from keras_deeplab.graph.describe import Window


@dataclass(frozen=True)
class Phase:
    """By how many samples of the finer map the original's samples are shifted.

    Attributes:
        constant: Part that is the same for every image.
        by_size: Operations whose "same" padding shifts by a number that depends on the image's
            size, as sorted (rate, extent, stride). Two branches with the same entries shift alike.
    """

    constant: int = 0
    by_size: tuple[tuple[int, int, int], ...] = ()

    def __add__(self, other: Phase) -> Phase:
        """The shift of one operation after another."""
        by_size = tuple(sorted(self.by_size + other.by_size))
        return Phase(self.constant + other.constant, by_size)


NO_SHIFT = Phase()


@dataclass(frozen=True)
class FinePadding:
    """Padding along one axis of the finer map.

    Attributes:
        begin: Pixels before the map; None where they depend on the image's size.
        end: Pixels after it.
        shift: What is added to the phase.
        is_same: Whether it is what TensorFlow's "same" gives the dilated kernel.
    """

    begin: int | None
    end: int | None
    shift: Phase = NO_SHIFT
    is_same: bool = False


def is_constant(padding: Sequence[FinePadding]) -> bool:
    """Tells whether the padding is the same for every image size."""
    return all(axis.begin is not None for axis in padding)


def fine_padding(
    window: Window,
    axis: int,
    *,
    rate: int,
    lost: bool,
    outer: tuple[int, int] | None,
    centred: bool,
) -> FinePadding:
    """Padding of a kernel dilated by `rate`, for the height (axis 0) or the width (axis 1).

    An original sample i reads from `stride * i - begin` on; the finer map must read the same
    pixels, `rate` times as far apart. A fine begin of `rate * begin` keeps the samples where they
    were; a larger one shifts them (`shift`), and is chosen if `centred` so that the fine map stays
    in the middle of its kernel instead of drifting to one side, as published networks are dilated.

    Args:
        window: The original kernel.
        axis: 0 or 1.
        rate: How much finer the map is along this axis.
        lost: Whether the operation loses its stride here.
        outer: Explicit padding (begin, end) in front of the operation, in original pixels.
        centred: Whether begin and end are balanced.
    """
    extent, stride = window.extent(axis), window.strides[axis]
    total = rate * (extent - 1)
    if not lost:
        begin, end = _own_padding(window, axis, extent)
        return _described(rate * begin, rate * end, total, NO_SHIFT)
    if window.padding == "same":
        begin, _ = same_padding(None, extent, stride)
        if begin is None and not centred:
            return FinePadding(None, None)
        fine = total // 2 if centred else rate * begin
        shift = (
            Phase(fine, ((rate, extent, stride),)) if begin is None else Phase(fine - rate * begin)
        )
        return _described(fine, total - fine, total, shift)
    begin, end = outer or (0, 0)
    # n samples become n / stride + grown of them; the fine map is to have rate * stride as many.
    grown = (begin + end - extent) // stride + 1
    room = total + grown * rate * stride
    fine = room // 2 if centred else rate * begin
    if not 0 <= fine - rate * begin <= rate * (stride - 1):
        fine = rate * begin  # the first original sample must lie on the fine map
    return _described(fine, room - fine, total, Phase(fine - rate * begin))


def _own_padding(window: Window, axis: int, extent: int) -> tuple[int, int]:
    """Padding of an operation without stride, in original pixels."""
    if window.padding == "valid":
        return (0, 0)
    if window.padding == "same":
        return ((extent - 1) // 2, extent // 2)
    return window.padding[axis]


def _described(begin: int, end: int, total: int, shift: Phase) -> FinePadding:
    return FinePadding(begin, end, shift, is_same=(begin, end) == (total // 2, total - total // 2))
