"""The geometry of a network: stride, receptive field and centre of every tensor."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import keras
from keras import layers as kl

from keras_deeplab import layers
from keras_deeplab.graph.kinds import Kind, kind, window
from keras_deeplab.graph.network import Call, functional, is_network, layer_error, walk
from keras_deeplab.validation import integer


class GeometryError(ValueError):
    """A layer that a network of this image size cannot have, without the layer's name."""


@dataclass(frozen=True)
class Axis:
    """One axis of a tensor, in image pixels.

    Sample `i` is computed from `field` pixels centred at `offset + i * stride`, and from the whole
    image if `unbounded` (a global pooling lies between). `stride` is None where there is no map (a
    vector, or one value for the whole image), `size` where it is unknown, `offset` where it depends
    on an unknown size.
    """

    stride: Fraction | None
    field: Fraction
    offset: Fraction | None
    size: int | None
    unbounded: bool = False


# Samples that an interpolation reads beside the nearest one, for each new one.
INTERPOLATED = {"nearest": 0, "area": 0, "bilinear": 1, "bicubic": 3, "lanczos3": 5, "lanczos5": 9}
_WHOLE_IMAGE = Axis(None, Fraction(0), None, None, unbounded=True)


@dataclass(frozen=True)
class TensorGeometry:
    """How a tensor lies on the image. Every property is a pair for (height, width).

    Attributes:
        axes: The geometry along the height and along the width.
    """

    axes: tuple[Axis, Axis]

    @property
    def stride(self) -> tuple[Any, Any]:
        """Image pixels from one sample to the next; None for a tensor without a map."""
        return tuple(_number(axis.stride) for axis in self.axes)

    @property
    def receptive_field(self) -> tuple[float, float]:
        """Image pixels that one sample depends on; `math.inf` after global pooling."""
        return tuple(math.inf if axis.unbounded else _number(axis.field) for axis in self.axes)

    @property
    def offset(self) -> tuple[float | None, float | None]:
        """Where the first sample's field is centred (0: the first pixel), None if unknown."""
        return tuple(_number(axis.offset) for axis in self.axes)

    @property
    def size(self) -> tuple[int | None, int | None]:
        """Samples, None where they depend on an image size that was not given."""
        return tuple(axis.size for axis in self.axes)


def _number(value: Fraction | None) -> int | float | None:
    if value is None:
        return None
    return int(value) if value.denominator == 1 else float(value)


class Geometry(dict[str, TensorGeometry]):
    """The geometry of every tensor of a network, in the order of computation.

    Index it with the name of a layer (`"block/conv"` inside a nested model or composite layer
    called "block"), or with a symbolic tensor of the model. A layer that is used several times is
    found under its name for its last use.

    Attributes:
        inputs: Geometry of the model's inputs.
        outputs: Geometry of the model's outputs.
        calls: Every operation's call with the geometry of its inputs and of its output.
    """

    def __init__(self) -> None:
        super().__init__()
        self._by_tensor: dict[int, TensorGeometry] = {}
        self.inputs: list[TensorGeometry] = []
        self.outputs: list[TensorGeometry] = []
        self.calls: list[tuple[Call, list[TensorGeometry], TensorGeometry]] = []

    @property
    def output(self) -> TensorGeometry:
        """Geometry of the model's only output."""
        if len(self.outputs) != 1:
            raise ValueError(f"The model has {len(self.outputs)} outputs: use `outputs`.")
        return self.outputs[0]

    def __missing__(self, key: str | keras.KerasTensor) -> TensorGeometry:
        if isinstance(key, keras.KerasTensor):
            return self._by_tensor[id(key)]
        raise KeyError(key)

    def visit(self, call: Call, inputs: list[TensorGeometry]) -> list[TensorGeometry]:
        """Records a call, and those inside a nested model or composite layer; for `walk`."""
        inner = call.operation if is_network(call.operation) else None
        if isinstance(call.operation, layers.CompositeLayer):
            inner = call.operation.graph(call.inputs[0].shape)
        if inner is not None:
            outputs = walk(inner, inputs, self.visit, call.path + "/")
        else:
            output = _output_geometry(call, inputs)
            self.calls.append((call, inputs, output))
            outputs = [output] * len(call.outputs)
        for tensor, output in zip(call.outputs, outputs, strict=True):
            self[call.path] = self._by_tensor[id(tensor)] = output
        return outputs


def geometry(model: keras.Model, height: int | None = None, width: int | None = None) -> Geometry:
    """Reads stride, receptive field and centre of every tensor of a network.

    Args:
        model: A functional Keras model or a built Sequential, channels last. Nested models and
            the composite layers of this package are entered.
        height, width: Size of the image in pixels, by default the model's own. Where neither is
            known, sizes and the offsets that depend on them are None.

    Returns:
        A `Geometry`: a mapping from layer names (or symbolic tensors) to `TensorGeometry`.

    Raises:
        ValueError: If a layer's geometry is not known, two merged maps differ in stride, or an
            image of the given size is too small for the network. The error names the layer.

    Example:

    >>> network = keras.applications.VGG16(include_top=False, weights=None)
    >>> found = keras_deeplab.graph.geometry(network)
    >>> found["block5_pool"].stride, found["block5_pool"].receptive_field
    ((32, 32), (212, 212))
    """
    given = {"height": height, "width": width}
    sizes = [None if value is None else integer(name, value) for name, value in given.items()]
    found = Geometry()
    for tensor in functional(model).inputs:
        start = TensorGeometry((_WHOLE_IMAGE, _WHOLE_IMAGE))
        if len(tensor.shape) == 4:
            known = (size or own for own, size in zip(tensor.shape[1:3], sizes, strict=True))
            one = Fraction(1)
            start = TensorGeometry(tuple(Axis(one, one, Fraction(0), size) for size in known))
        found.inputs.append(start)
        found[tensor._keras_history.operation.name] = found._by_tensor[id(tensor)] = start
    found.outputs = walk(model, found.inputs, found.visit)
    return found


def _output_geometry(call: Call, inputs: list[TensorGeometry]) -> TensorGeometry:
    how = kind(call.operation, call.path, call.rank)
    if how is Kind.WINDOW:
        _check_own_call(call)
    try:
        axes = (_output_axis(call, how, i, [value.axes[i] for value in inputs]) for i in (0, 1))
        return TensorGeometry(tuple(axes))
    except GeometryError as error:
        rule = "maps that fit each other and the image"
        raise layer_error(rule, call.path, str(error)) from None


# Layers that `_check_own_call` has found right: each trace takes some milliseconds.
_traced: weakref.WeakSet[keras.layers.Layer] = weakref.WeakSet()


def _check_own_call(call: Call) -> None:
    """Raises a ValueError for a user's subclass of a convolution or pooling that also pads."""
    layer = call.operation
    if type(layer).__module__.startswith(("keras.", "keras_deeplab.")) or layer in _traced:
        return
    extents = [window(layer).extent(i) for i in (0, 1)]
    for more in range(max(window(layer).strides)):  # one of them shows a single pixel
        shape = (1, *(2 * extent + more for extent in extents), call.inputs[0].shape[-1])
        traced = keras.Operation.compute_output_spec(layer, keras.KerasTensor(shape, layer.dtype))
        if tuple(traced.shape) != tuple(layer.compute_output_shape(shape)):
            name = type(layer).__name__
            detail = f"({name}) changes the size in its own `call`. Pad in front of it."
            raise layer_error("layers whose effect on height and width is known", call.path, detail)
    _traced.add(layer)


def _output_axis(call: Call, how: Kind, index: int, inputs: list[Axis]) -> Axis:
    """The axis of the output, from the axes of the inputs (index 0 is height, 1 is width)."""
    operation = call.operation
    if how is Kind.POINTWISE:
        return _merged(inputs)
    if how is Kind.RESIZE_LIKE:
        return _resized_like(*inputs, operation)
    if how is Kind.CROP_LIKE:
        return replace(inputs[0], size=inputs[1].size)
    (axis,) = inputs
    if how is Kind.GLOBAL:
        return axis if is_map_reshape(call) else _whole_image(call, index)
    if axis.stride is None:
        return _whole_image(call, index)
    if how is Kind.STATISTICS:
        return replace(axis, unbounded=True)
    if how is Kind.PAD_TO:
        return replace(axis, size=axis.size and max(axis.size, operation.minimum[index]))
    if how is Kind.PAD:
        is_fixed = isinstance(operation, kl.ZeroPadding2D)
        pads = operation.padding[index] if is_fixed else operation.pads(index, axis.size)
        return _padded(axis, *pads)
    if how is Kind.CROP:
        begin, end = operation.cropping[index]
        return _padded(axis, -begin, -end)
    return _SPATIAL[how](operation, index, axis)


def _whole_image(call: Call, index: int) -> Axis:
    """The axis of a value whose samples have no place on the image: of a vector the size is 1."""
    shape = call.outputs[0].shape
    return replace(_WHOLE_IMAGE, size=shape[1 + index] if len(shape) == 4 else 1)


def is_map_reshape(call: Call) -> bool:
    """Whether a reshape leaves height and width, which are known, as they are."""
    before, after = call.inputs[0].shape, call.outputs[0].shape
    return (
        isinstance(call.operation, kl.Reshape)
        and len(before) == len(after) == 4
        and None not in before[1:3]
        and before[1:3] == after[1:3]
    )


def _merged(inputs: Sequence[Axis]) -> Axis:
    """Several maps are combined pixel by pixel; single values are broadcast."""
    maps = [axis for axis in inputs if axis.stride is not None]
    if not maps or len(inputs) == 1:
        return inputs[0]
    strides = sorted({axis.stride for axis in maps})
    if len(strides) > 1:
        raise GeometryError(f"merges maps of stride {' and '.join(map(str, strides))}.")
    sizes = sorted({axis.size for axis in maps if axis.size is not None} - {1})
    if len(sizes) > 1:
        raise GeometryError(f"merges maps of {' and '.join(map(str, sizes))} samples.")
    size = sizes[0] if sizes else maps[0].size
    field, offset = max(axis.field for axis in maps), None
    if all(axis.offset is not None for axis in maps):
        first = min(axis.offset - (axis.field - 1) / 2 for axis in maps)
        last = max(axis.offset + (axis.field - 1) / 2 for axis in maps)
        field, offset = last - first + 1, (first + last) / 2
    return Axis(strides[0], field, offset, size, any(axis.unbounded for axis in inputs))


def same_padding(size: int | None, extent: int, stride: int) -> tuple[int | None, int | None]:
    """Padding (begin, end) that TensorFlow's "same" puts around a map.

    Without a size: the begin if it is the same for every size, else (None, None). The end is then
    a value that gives `ceil(size / stride)` samples for the sizes that divide.
    """
    if size is None:
        begins = {same_padding(n, extent, stride)[0] for n in range(1, stride + 1)}
        return same_padding(stride, extent, stride) if len(begins) == 1 else (None, None)
    total = max((-(-size // stride) - 1) * stride + extent - size, 0)
    return (total // 2, total - total // 2)


def _slid(operation: Any, index: int, axis: Axis) -> Axis:
    shape = window(operation)
    extent, stride = shape.extent(index), shape.strides[index]
    begin, end = 0, 0
    if isinstance(operation, layers.AtrousPooling2D):
        begin, end = operation.pads(index, axis.size)
        rate, size = shape.dilation[index], axis.size
        # A pooling leaves padding out. A map of fewer samples than `rate` can fall between the taps
        # of a window, unless each window starts `k * rate - j` samples before it, with one `k` and
        # a `j` below its size: the first starts `begin` before it, the last `extent - end - size`.
        if size is not None and size < rate and -(-begin // rate) * rate > extent - end - 1:
            raise GeometryError(
                f"has taps {rate} samples apart on a map of {size}, so that a window covers "
                "padding alone: the image is too small."
            )
    elif shape.padding == "same":
        begin, end = same_padding(axis.size, extent, stride)
    axis = _padded(axis, begin, end)
    size = axis.size
    if size is not None:
        if size < extent:
            raise GeometryError(
                f"needs at least {extent} samples and receives {size}: the image is too small."
            )
        size = (size - extent) // stride + 1
    offset = None if axis.offset is None else axis.offset + axis.stride * Fraction(extent - 1, 2)
    field = axis.field + (extent - 1) * axis.stride
    return replace(axis, stride=axis.stride * stride, field=field, offset=offset, size=size)


def _padded(axis: Axis, begin: int | None, end: int | None) -> Axis:
    """Samples are put before and after the map, or cut off if negative."""
    if begin is None:
        return replace(axis, offset=None, size=None)
    offset = None if axis.offset is None else axis.offset - axis.stride * begin
    size = None if axis.size is None else axis.size + begin + end
    if size is not None and size < 1:
        raise GeometryError(f"cuts {-begin - end} of {axis.size} samples: the image is too small.")
    return replace(axis, offset=offset, size=size)


def _upsampled(operation: Any, index: int, axis: Axis) -> Axis:
    """The map grows by a whole factor; pixels are areas, so the outer edges stay."""
    factor = operation.size[index]
    size = None if axis.size is None else axis.size * factor
    return _stretched(axis, operation, axis.stride / factor, size)


def _resized_like(axis: Axis, reference: Axis, operation: Any) -> Axis:
    """The map is laid over a reference map, whose stride it takes."""
    if axis.stride is None:  # one value for the whole image is broadcast
        return replace(axis, stride=reference.stride, offset=reference.offset, size=reference.size)
    resized = _stretched(axis, operation, reference.stride, reference.size)
    if operation.align_corners:  # the first samples lie on each other
        return replace(resized, offset=axis.offset)
    if None in (axis.offset, axis.size, reference.size):
        return replace(resized, offset=None)
    spacing = axis.stride * Fraction(axis.size, reference.size)
    return replace(resized, offset=axis.offset + (spacing - axis.stride) / 2)


def _stretched(axis: Axis, operation: Any, stride: Fraction, size: int | None) -> Axis:
    """A map of another stride whose outer edges are those of the old one."""
    between = INTERPOLATED[operation.interpolation] if stride != axis.stride else 0
    field = axis.field + between * axis.stride
    offset = None if axis.offset is None else axis.offset + (stride - axis.stride) / 2
    return replace(axis, stride=stride, field=field, offset=offset, size=size)


def _transposed(operation: Any, index: int, axis: Axis) -> Axis:
    """Input sample i reaches the outputs from stride * i - begin on."""
    if operation.output_padding is not None or operation.dilation_rate[index] != 1:
        raise GeometryError("is a transposed convolution with output_padding or dilation_rate.")
    kernel, stride = operation.kernel_size[index], operation.strides[index]
    surplus, is_same = max(kernel - stride, 0), operation.padding == "same"
    fine = axis.stride / stride
    offset, size = axis.offset, axis.size
    if offset is not None:
        offset -= fine * (Fraction(kernel - 1, 2) - (surplus // 2 if is_same else 0))
    if size is not None:
        size = size * stride + (0 if is_same else surplus)
    field = axis.field + axis.stride * (-(-kernel // stride) - 1)
    return replace(axis, stride=fine, field=field, offset=offset, size=size)


# What a kind of operation does to the axis of a map.
_SPATIAL = {
    Kind.WINDOW: _slid,
    Kind.TRANSPOSED: _transposed,
    Kind.UPSAMPLE: _upsampled,
}
