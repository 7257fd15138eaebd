"""The arithmetic of strides, receptive fields and centres along one axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction


class GeometryError(ValueError):
    """What is wrong at a layer; the caller puts the layer's name in front."""


@dataclass(frozen=True)
class Axis:
    """One axis of a map, in image pixels.

    Sample `i` is computed from `field` pixels centred at `offset + i * stride`, and from the whole
    image if `unbounded`.

    Attributes:
        stride: From one sample to the next; None where there is no map (a vector, or one value
            for the whole image).
        field: Pixels seen through kernels and poolings.
        offset: Centre of the first sample's field; None if it depends on an unknown size.
        size: Number of samples, None if unknown.
        unbounded: Whether a global pooling lies behind.
    """

    stride: Fraction | None
    field: Fraction
    offset: Fraction | None
    size: int | None
    unbounded: bool = False

    @property
    def receptive_field(self) -> float:
        """The whole field."""
        return math.inf if self.unbounded else _number(self.field)

    @property
    def public_stride(self) -> float | None:
        """The stride as a plain number."""
        return None if self.stride is None else _number(self.stride)

    @property
    def public_offset(self) -> float | None:
        """The offset as a plain number."""
        return None if self.offset is None else _number(self.offset)


# One value for the whole image.
WHOLE = Axis(None, Fraction(0), None, None, unbounded=True)


def _number(value: Fraction) -> int | float:
    return int(value) if value.denominator == 1 else float(value)


def same_padding(size: int | None, extent: int, stride: int) -> tuple[int | None, int | None]:
    """What TensorFlow's "same" padding puts before and after a map.

    Without a size: (begin, end) if every size gives the same begin, else (None, None). The end is
    then a value that gives `ceil(size / stride)` samples for the sizes that divide.
    """
    if size is None:
        totals = {max((-(-n // stride) - 1) * stride + extent - n, 0) for n in range(1, stride + 1)}
        begins = {total // 2 for total in totals}
        if len(begins) > 1:
            return (None, None)
        return (begins.pop(), max(extent - stride, 0) - max(extent - stride, 0) // 2)
    total = max((-(-size // stride) - 1) * stride + extent - size, 0)
    return (total // 2, total - total // 2)


def window(axis: Axis, extent: int, stride: int, begin: int | None, end: int | None) -> Axis:
    """A kernel of `extent` pixels slides by `stride` over the padded map."""
    size = None
    if axis.size is not None and begin is not None:
        size = (axis.size + begin + end - extent) // stride + 1
        if size < 1:
            raise GeometryError(
                f"needs at least {extent} samples and receives {axis.size + begin + end}: the "
                "image is too small."
            )
    offset = None
    if axis.offset is not None and begin is not None:
        offset = axis.offset + axis.stride * (Fraction(extent - 1, 2) - begin)
    field = axis.field + (extent - 1) * axis.stride
    return replace(axis, stride=axis.stride * stride, field=field, offset=offset, size=size)


def check_taps(axis: Axis, extent: int, rate: int, begin: int, end: int) -> None:
    """Refuses a map on which a window of a dilated pooling, which leaves padding out, is empty.

    A map of `rate` samples or more never falls between two taps. A smaller one does, unless every
    window starts `k * rate - j` samples before it, with one `k` and each `j` below its size. The
    first window starts `begin` samples before the map, the last `extent - end - size`.
    """
    multiple = -(-begin // rate) * rate
    if axis.size is not None and axis.size < rate and multiple > extent - end - 1:
        raise GeometryError(
            f"has taps {rate} samples apart on a map of {axis.size}, so that a window meets "
            "padding alone: the image is too small."
        )


def pad(axis: Axis, begin: int | None, end: int | None) -> Axis:
    """Pixels are put before and after the map, or cut off if negative."""
    if begin is None:
        return replace(axis, offset=None, size=None)
    offset = None if axis.offset is None else axis.offset - axis.stride * begin
    size = None if axis.size is None else axis.size + begin + end
    if size is not None and size < 1:
        raise GeometryError(f"cuts {-begin - end} of {axis.size} samples: the image is too small.")
    return replace(axis, offset=offset, size=size)


def merge(inputs: Sequence[Axis]) -> Axis:
    """Several maps are combined pixel by pixel; single values are broadcast."""
    unbounded = any(axis.unbounded for axis in inputs)
    maps = [axis for axis in inputs if axis.stride is not None]
    if not maps:
        return inputs[0]
    strides = {axis.stride for axis in maps}
    if len(strides) > 1:
        listed = " and ".join(str(_number(stride)) for stride in sorted(strides))
        raise GeometryError(f"merges maps of stride {listed}.")
    sizes = {axis.size for axis in maps if axis.size is not None} - {1}
    if len(sizes) > 1:
        listed = " and ".join(str(size) for size in sorted(sizes))
        raise GeometryError(f"merges maps of {listed} samples.")
    size = max(sizes) if sizes else maps[0].size
    if any(axis.offset is None for axis in maps):
        field, offset = max(axis.field for axis in maps), None
    else:
        first = min(axis.offset - (axis.field - 1) / 2 for axis in maps)
        last = max(axis.offset + (axis.field - 1) / 2 for axis in maps)
        field, offset = last - first + 1, (first + last) / 2
    return Axis(maps[0].stride, field, offset, size, unbounded)


def upsample(axis: Axis, factor: int, *, bilinear: bool) -> Axis:
    """The map grows by a whole factor; pixels are areas, so the outer edges stay."""
    taps = axis.stride if bilinear and factor > 1 else 0
    stride = axis.stride / factor
    offset = None if axis.offset is None else axis.offset + (stride - axis.stride) / 2
    size = None if axis.size is None else axis.size * factor
    return replace(axis, stride=stride, field=axis.field + taps, offset=offset, size=size)


def transposed(axis: Axis, kernel: int, stride: int, same: bool) -> Axis:
    """A transposed convolution: input sample i reaches the outputs from stride * i - begin on."""
    begin = max(kernel - stride, 0) // 2 if same else 0
    fine = axis.stride / stride
    offset = None if axis.offset is None else axis.offset - fine * (Fraction(kernel - 1, 2) - begin)
    size = None
    if axis.size is not None:
        size = axis.size * stride if same else axis.size * stride + max(kernel - stride, 0)
    field = axis.field + axis.stride * (-(-kernel // stride) - 1)
    return replace(axis, stride=fine, field=field, offset=offset, size=size)


def resize_to(axis: Axis, target: int, *, bilinear: bool) -> Axis:
    """The map is resized to a fixed size."""
    if axis.size is None:
        raise GeometryError(
            "resizes to a fixed size: its stride needs the image's height and width."
        )
    stride = axis.stride * Fraction(axis.size, target)
    offset = None if axis.offset is None else axis.offset + (stride - axis.stride) / 2
    taps = axis.stride if bilinear and axis.size != target else 0
    return replace(axis, stride=stride, field=axis.field + taps, offset=offset, size=target)


def resize_like(
    axis: Axis, reference: Axis, *, bilinear: bool, align_corners: bool = False
) -> Axis:
    """The map is laid over a reference map, whose stride it takes."""
    if axis.stride is None:  # one value for the whole image is broadcast
        return replace(axis, stride=reference.stride, offset=reference.offset, size=reference.size)
    taps = axis.stride if bilinear and axis.stride != reference.stride else 0
    offset = axis.offset if align_corners else None
    if not align_corners and None not in (axis.offset, axis.size, reference.size):
        ratio = Fraction(axis.size, reference.size)
        offset = axis.offset + axis.stride * (ratio - 1) / 2
    return replace(
        axis, stride=reference.stride, field=axis.field + taps, offset=offset, size=reference.size
    )
