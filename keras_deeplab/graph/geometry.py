"""Reading the geometry of a network: stride, receptive field and centre of every tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import keras

from keras_deeplab import layers
from keras_deeplab.graph import axis_rules as rules
from keras_deeplab.graph.axis_rules import Axis
from keras_deeplab.graph.describe import Kind, kind, window
from keras_deeplab.graph.network import Call, functional, trace, walk


@dataclass(frozen=True)
class TensorGeometry:
    """How a tensor lies on the image. Every property is a pair for (height, width).

    Attributes:
        height: The geometry along the height.
        width: The geometry along the width.
    """

    height: Axis
    width: Axis

    @property
    def axes(self) -> tuple[Axis, Axis]:
        """Both axes."""
        return (self.height, self.width)

    @property
    def stride(self) -> tuple[Any, Any]:
        """Image pixels from one sample to the next; None for a tensor without a map."""
        return (self.height.public_stride, self.width.public_stride)

    @property
    def receptive_field(self) -> tuple[float, float]:
        """Image pixels that one sample depends on; `math.inf` behind global pooling."""
        return (self.height.receptive_field, self.width.receptive_field)

    @property
    def offset(self) -> tuple[float | None, float | None]:
        """Where the first sample's field is centred, in image pixels; 0 is the first pixel.

        None where it depends on an image size that was not given.
        """
        return (self.height.public_offset, self.width.public_offset)

    @property
    def size(self) -> tuple[int | None, int | None]:
        """Samples, None where they depend on an image size that was not given."""
        return (self.height.size, self.width.size)


class Geometry(Mapping[str, TensorGeometry]):
    """The geometry of every tensor of a network, in the order of computation.

    Index it with the name of a layer (`"block/conv"` inside a nested model or composite layer
    called "block"), or with a symbolic tensor of the model. A layer that is used several times is
    found under its name for its last use.

    Attributes:
        inputs: Geometry of the model's inputs.
        outputs: Geometry of the model's outputs.
    """

    def __init__(self) -> None:
        self._by_path: dict[str, TensorGeometry] = {}
        self._by_tensor: dict[int, TensorGeometry] = {}
        self.inputs: list[TensorGeometry] = []
        self.outputs: list[TensorGeometry] = []

    @property
    def output(self) -> TensorGeometry:
        """Geometry of the model's only output."""
        if len(self.outputs) != 1:
            raise ValueError(f"The model has {len(self.outputs)} outputs: use `outputs`.")
        return self.outputs[0]

    def record(self, path: str, tensor: keras.KerasTensor, value: TensorGeometry) -> None:
        """Keeps one tensor's geometry."""
        self._by_path[path] = value
        self._by_tensor[id(tensor)] = value

    def __getitem__(self, key: str | keras.KerasTensor) -> TensorGeometry:
        if isinstance(key, keras.KerasTensor):
            return self._by_tensor[id(key)]
        return self._by_path[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_path)

    def __len__(self) -> int:
        return len(self._by_path)


def geometry(model: keras.Model, height: int | None = None, width: int | None = None) -> Geometry:
    """Reads stride, receptive field and centre of every tensor of a network.

    Args:
        model: A functional Keras model or a built Sequential, channels last. Nested models and
            the composite layers of this package are entered.
        height: Image height in pixels, an integer from 1. Without it the model's own, if fixed;
            sizes, and offsets that depend on them, are None when neither is known.
        width: Image width, likewise.

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
    return measure(model, height, width)


def measure(
    model: keras.Model,
    height: int | None,
    width: int | None,
    see: Callable[[Call, list[TensorGeometry], TensorGeometry], None] | None = None,
) -> Geometry:
    """Like `geometry`, calling `see(call, input geometries, output geometry)` at each operation."""
    for name, value in (("height", height), ("width", width)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"`{name}` must be a positive integer or None, received {value!r}.")
    found = Geometry()

    def visit(call: Call, *args: Any, **kwargs: Any) -> Any:
        inputs = [v for v in keras.tree.flatten((args, kwargs)) if isinstance(v, TensorGeometry)]
        if kind(call.operation, call.path) is Kind.COMPOSITE:
            inner = trace(call.operation, call.inputs)
            (output,) = walk(inner, inputs, visit, call.path + "/")
        else:
            output = _apply(call, inputs)
            if see is not None:
                see(call, inputs, output)
        for tensor in call.outputs:
            found.record(call.path, tensor, output)
        return [output] * len(call.outputs)

    def left(call: Call, outputs: list[TensorGeometry]) -> None:
        for tensor, output in zip(call.outputs, outputs, strict=True):
            found.record(call.path, tensor, output)

    for tensor in functional(model).inputs:
        start = _input_geometry(tensor, height, width)
        found.record(tensor._keras_history.operation.name, tensor, start)
        found.inputs.append(start)
    found.outputs = walk(model, found.inputs, visit, left=left)
    return found


def _input_geometry(
    tensor: keras.KerasTensor, height: int | None, width: int | None
) -> TensorGeometry:
    if len(tensor.shape) != 4:
        return TensorGeometry(rules.WHOLE, rules.WHOLE)
    known = tensor.shape[1:3]
    sizes = [
        own if given is None else given for own, given in zip(known, (height, width), strict=True)
    ]
    return TensorGeometry(*(Axis(Fraction(1), Fraction(1), Fraction(0), size) for size in sizes))


def _apply(call: Call, inputs: list[TensorGeometry]) -> TensorGeometry:
    try:
        return TensorGeometry(
            *(_apply_axis(call, index, [value.axes[index] for value in inputs]) for index in (0, 1))
        )
    except rules.GeometryError as error:
        raise ValueError(f"The layer '{call.path}' {error}") from None


def _apply_axis(call: Call, index: int, inputs: list[Axis]) -> Axis:
    """The axis of the output, from the axes of the inputs (index 0 is height, 1 is width)."""
    operation, how = call.operation, kind(call.operation, call.path)
    if how is Kind.POINTWISE:
        return rules.merge(inputs)
    if how is Kind.RESIZE_LIKE:
        return rules.resize_like(
            *inputs,
            bilinear=operation.interpolation == "bilinear",
            align_corners=operation.align_corners,
        )
    if how is Kind.CROP_LIKE:
        return replace(inputs[0], size=inputs[1].size)
    (axis,) = inputs
    if how is Kind.GLOBAL and not is_map_reshape(call):
        return replace(rules.WHOLE, size=1)
    if axis.stride is None or how is Kind.GLOBAL:  # a vector, or a map left as it was
        return axis
    if how is Kind.STATISTICS:
        return replace(axis, unbounded=True)
    if how is Kind.WINDOW:
        shape = window(operation)
        begin, end = _window_padding(operation, shape, index, axis)
        return rules.window(axis, shape.extent(index), shape.strides[index], begin, end)
    if how is Kind.TRANSPOSED:
        return _transposed(operation, index, axis)
    if how in (Kind.PAD, Kind.CROP):
        begin, end = _padding(operation, index, axis)
        return rules.pad(axis, begin, end)
    if how is Kind.UPSAMPLE:
        return rules.upsample(
            axis, operation.size[index], bilinear=operation.interpolation != "nearest"
        )
    if how is Kind.PAD_TO:
        least = operation.minimum[index]
        return replace(axis, size=None if axis.size is None else max(axis.size, least))
    target = (operation.height, operation.width)[index]
    return rules.resize_to(axis, target, bilinear=operation.interpolation != "nearest")


def is_map_reshape(call: Call) -> bool:
    """A reshape between two maps of the same known size only touches channels."""
    before, after = call.inputs[0].shape, call.outputs[0].shape
    return (
        isinstance(call.operation, keras.layers.Reshape)
        and len(before) == len(after) == 4
        and None not in before[1:3]
        and before[1:3] == after[1:3]
    )


def _window_padding(
    operation: Any, shape: Any, index: int, axis: Axis
) -> tuple[int | None, int | None]:
    if isinstance(operation, layers.AtrousPooling2D):
        if operation.source_strides is not None and axis.size is None:
            return (None, None)
        pads = operation.pads(index, axis.size)
        rules.check_taps(axis, shape.extent(index), shape.dilation[index], *pads)
        return pads
    if shape.padding == "same":
        return rules.same_padding(axis.size, shape.extent(index), shape.strides[index])
    return (0, 0)


def _padding(operation: Any, index: int, axis: Axis) -> tuple[int | None, int | None]:
    if isinstance(operation, keras.layers.ZeroPadding2D):
        return operation.padding[index]
    if isinstance(operation, keras.layers.Cropping2D):
        begin, end = operation.cropping[index]
        return (-begin, -end)
    total = operation.dilation_rate[index] * (operation.kernel_size[index] - 1)
    if axis.size is None:
        return (None, None)
    begin = operation.begin(index, axis.size)
    return (begin, total - begin)


def _transposed(operation: Any, index: int, axis: Axis) -> Axis:
    if operation.output_padding is not None or operation.dilation_rate[index] != 1:
        raise rules.GeometryError(
            "is a transposed convolution with output_padding or dilation_rate, which the geometry "
            "does not cover."
        )
    return rules.transposed(
        axis, operation.kernel_size[index], operation.strides[index], operation.padding == "same"
    )
