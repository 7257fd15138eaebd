"""The receptive field as an up-convolution: a one-hot map, transposed through linear layers."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers as kl

from keras_deeplab.graph.geometry import geometry, same_padding
from keras_deeplab.graph.kinds import window
from keras_deeplab.graph.network import layer_error
from keras_deeplab.validation import error, integers, pair


def transposed_receptive_field(
    model: keras.Model, size: tuple[int, int], position: tuple[int, int] | None = None
) -> np.ndarray:
    """Computes the receptive field of an output by transposed convolutions of a one-hot map.

    The map is 1 at the output's position and 0 elsewhere. Every layer, from the last to the first,
    puts its kernel where an output sample lies, times the sample: that is its transposed
    convolution, also called up-convolution. In a linear network the result is exactly the gradient
    of the output, the weight of each pixel. Its support is the theoretical receptive field; in a
    network with activations, each of which scales or stops a path, it is an upper bound of the
    support of the gradient.

    Args:
        model: A chain of convolutions (also depthwise and atrous ones), average poolings, zero
            paddings and linear activations, without branches.
        size: `(height, width)` of the image.
        position: Row and column of the output sample; the central one by default.

    Returns:
        The weights of the pixels, float64 `(height, width, channels)`, for the sum of the output's
        channels.

    Raises:
        ValueError: If the model has branches, other layers or several outputs, the image is too
            small for it, or the position is outside the output.

    Example:

    >>> stack = keras.Sequential([keras.Input((None, None, 1)), keras.layers.Conv2D(1, 3)])
    >>> keras_deeplab.analysis.transposed_receptive_field(stack, (5, 5)).nonzero()[0].tolist()
    [1, 1, 1, 2, 2, 2, 3, 3, 3]

    Reference:
        [Dumoulin and Visin, 2016](https://arxiv.org/abs/1603.07285), section 4.
    """
    found = geometry(model, *pair("size", size))
    if len(found.outputs) != 1:
        raise error("model", "one with one output", f"{len(found.outputs)} outputs")
    before = found.inputs[0]
    for call, inputs, after in found.calls:
        if len(inputs) != 1 or inputs[0] is not before:
            raise layer_error("no branches", call.path, "joins branches or skips a layer.")
        _check_linear(call.operation, call.path)
        before = after
    weights = np.zeros((*before.size, model.outputs[0].shape[-1]))
    weights[checked_position(position, before.size)] = 1
    for call, (inside,), _ in reversed(found.calls):
        weights = _transposed(call.operation, weights, inside.size)
    return weights


def checked_position(position: tuple[int, int] | None, size: tuple[int, int]) -> tuple[int, int]:
    """Returns a row and a column of a map, by default its centre."""
    if position is None:
        return size[0] // 2, size[1] // 2
    found = integers("position", position, minimum=0)
    if len(found) != 2 or not np.less(found, size).all():
        rule = f"a row and a column of a map of {size[0]}x{size[1]}"
        raise error("position", rule, position)
    return found


def _pads(operation: Any, size: tuple[int, int]) -> list[tuple[int, int]]:
    if isinstance(operation, kl.ZeroPadding2D):
        return list(operation.padding)
    shape = window(operation)
    if shape.padding != "same":
        return [(0, 0), (0, 0)]
    extents = [(n, shape.extent(i), shape.strides[i]) for i, n in enumerate(size)]
    return [same_padding(*axis) for axis in extents]


def _check_linear(operation: Any, path: str) -> None:
    known = kl.Conv2D | kl.DepthwiseConv2D | kl.AveragePooling2D | kl.ZeroPadding2D
    is_plain = getattr(operation, "groups", 1) == 1 and not isinstance(
        operation, kl.Conv2DTranspose
    )
    if not _is_linear_activation(operation) and not (isinstance(operation, known) and is_plain):
        raise layer_error("linear layers that slide a kernel", path, "is of another kind.")
    if getattr(operation, "activation", keras.activations.linear) is not keras.activations.linear:
        raise layer_error("no activations", path, "has one.")


def _is_linear_activation(operation: Any) -> bool:
    is_linear = isinstance(operation, kl.Activation) and operation.activation
    return is_linear is keras.activations.linear or isinstance(operation, kl.Identity)


def _transposed(operation: Any, weights: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Puts the kernel where each sample of the output lies, times the sample, and adds it up."""
    if _is_linear_activation(operation):
        return weights
    (top, bottom), (left, right) = _pads(operation, size)
    height, width = size[0] + top + bottom, size[1] + left + right
    if isinstance(operation, kl.ZeroPadding2D):
        return weights[top : top + size[0], left : left + size[1]]
    shape = window(operation)
    kernel = _kernel(operation, weights.shape[-1])
    rows, columns = weights.shape[:2]
    if isinstance(operation, kl.AveragePooling2D):  # the mean leaves padding out
        counts = []
        for axis, (begin, _) in enumerate(_pads(operation, size)):
            starts = np.arange(weights.shape[axis]) * shape.strides[axis] - begin
            taps = starts[:, None] + np.arange(shape.kernel[axis])
            counts.append(((taps >= 0) & (taps < size[axis])).mean(1))
        weights = weights / np.multiply.outer(*counts)[:, :, None]
    placed = np.zeros((height, width, kernel.shape[2]))
    for i, j in np.ndindex(kernel.shape[:2]):
        down, along = i * shape.dilation[0], j * shape.dilation[1]
        under = (
            slice(down, down + (rows - 1) * shape.strides[0] + 1, shape.strides[0]),
            slice(along, along + (columns - 1) * shape.strides[1] + 1, shape.strides[1]),
        )
        placed[under] += weights @ kernel[i, j].T
    return placed[top : top + size[0], left : left + size[1]]


def _kernel(operation: Any, channels: int) -> np.ndarray:
    """Returns the kernel `(height, width, input channels, output channels)`."""
    if isinstance(operation, kl.AveragePooling2D):
        size = operation.pool_size
        return np.ones((*size, 1, 1)) * np.eye(channels) / np.prod(size)
    kernel = np.asarray(operation.kernel, np.float64)
    if not isinstance(operation, kl.DepthwiseConv2D):
        return kernel
    full = kernel[:, :, :, None] * np.eye(kernel.shape[2])[:, :, None]
    return full.reshape(*kernel.shape[:3], -1)
