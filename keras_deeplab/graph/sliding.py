"""Convolutions and poolings that lose their stride or work on a finer map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import keras

from keras_deeplab import layers
from keras_deeplab.graph.counterparts import Counterparts
from keras_deeplab.graph.describe import Window, window
from keras_deeplab.graph.fine_map import FineMap
from keras_deeplab.graph.fine_padding import FinePadding, fine_padding, is_constant
from keras_deeplab.graph.network import Call

_POOLINGS = (keras.layers.MaxPooling2D, keras.layers.AveragePooling2D, layers.AtrousPooling2D)


def dilated(
    call: Call,
    source: FineMap,
    lost: tuple[bool, bool],
    counterparts: Counterparts,
    *,
    centred: bool,
) -> FineMap:
    """Applies a sliding kernel to a finer map, dilated and without its stride.

    Args:
        call: The original operation.
        source: What it works on. Padding waits in it only if the kernel takes it over.
        lost: Along which axes the stride is given up.
        counterparts: Where the new operation is made.
        centred: As in `fine_padding`.
    """
    shape = window(call.operation)
    padding = [
        fine_padding(
            shape,
            axis,
            rate=source.rate[axis],
            lost=lost[axis],
            outer=None if source.pads is None else source.pads[axis],
            centred=centred,
        )
        for axis in (0, 1)
    ]
    slide = _pooling if isinstance(call.operation, _POOLINGS) else _convolution
    tensor = slide(call, source, padding, counterparts)
    phase = tuple(old + new.shift for old, new in zip(source.phase, padding, strict=True))
    return replace(source.behind(shape.strides, lost), tensor=tensor, phase=phase)


def padded_with_zeros(
    call: Call, source: FineMap, padding: Sequence[FinePadding], counterparts: Counterparts
) -> keras.KerasTensor:
    """Explicit zero padding, named after the padding or operation that it is for."""
    pads = tuple((axis.begin, axis.end) for axis in padding)
    if not any(map(any, pads)):
        return source.tensor
    own = source.pad_call is not None
    name = source.pad_call.operation.name if own else f"{call.operation.name}_pad"
    layer = keras.layers.ZeroPadding2D(pads, name=counterparts.name(name))
    return layer(source.tensor)


def dilation(shape: Window, source: FineMap) -> tuple[int, int]:
    """The kernel's own rate times the map's; a kernel of one pixel has none."""
    return tuple(
        own * rate if kernel > 1 else 1
        for own, rate, kernel in zip(shape.dilation, source.rate, shape.kernel, strict=True)
    )


def _convolution(
    call: Call, source: FineMap, padding: Sequence[FinePadding], counterparts: Counterparts
) -> keras.KerasTensor:
    shape, x, how = window(call.operation), source.tensor, "valid"
    if all(axis.is_same for axis in padding):
        how = "same"
    elif is_constant(padding):
        x = padded_with_zeros(call, source, padding, counterparts)
    else:
        name = counterparts.name(f"{call.operation.name}_pad")
        extent = (shape.extent(0), shape.extent(1))
        x = layers.AtrousPadding2D(extent, shape.strides, source.rate, name=name)(x)
    convolution = counterparts.clone(
        call, strides=(1, 1), dilation_rate=dilation(shape, source), padding=how
    )
    return convolution(x)


def _pooling(
    call: Call, source: FineMap, padding: Sequence[FinePadding], counterparts: Counterparts
) -> keras.KerasTensor:
    operation, shape, x = call.operation, window(call.operation), source.tensor
    if shape.kernel == (1, 1) and source.pads is None:  # nothing but its stride
        return counterparts.replaced(call, keras.layers.Identity)(x)
    if source.pads is not None:  # zeros of the network's own, which take part in the pooling
        x, how = padded_with_zeros(call, source, padding, counterparts), "valid"
    elif is_constant(padding):
        how = tuple((axis.begin, axis.end) for axis in padding)
    else:
        how = "same"
    average = isinstance(operation, keras.layers.AveragePooling2D) or (
        getattr(operation, "mode", None) == "average"
    )
    return counterparts.replaced(
        call,
        layers.AtrousPooling2D,
        pool_size=shape.kernel,
        mode="average" if average else "max",
        dilation_rate=dilation(shape, source),
        padding=how,
        source_strides=None if is_constant(padding) else shape.strides,
    )(x)
