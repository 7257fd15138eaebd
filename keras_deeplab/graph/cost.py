"""What a network costs: multiply-adds, layer by layer."""

from __future__ import annotations

import math
from typing import Any

import keras

from keras_deeplab.graph.geometry import TensorGeometry, measure
from keras_deeplab.graph.network import Call


def multiply_adds(model: keras.Model, height: int, width: int) -> dict[str, int]:
    """Counts the multiply-adds of every convolution and dense layer for one image.

    Taps that fall into padding are counted, biases, norms, activations and resizing are not.

    Args:
        model: A functional Keras model.
        height: Image height in pixels.
        width: Image width in pixels.

    Returns:
        A dict from layer name (`"outer/inner"` in nested models and composite layers) to its
        multiply-adds; the network's are `sum(counts.values())`.

    Raises:
        ValueError: As `geometry`.

    Example:

    >>> network = keras.applications.VGG16(include_top=False, weights=None)
    >>> sum(keras_deeplab.graph.multiply_adds(network, 224, 224).values())
    15346630656
    """
    counts: dict[str, int] = {}

    def see(call: Call, inputs: list[TensorGeometry], output: TensorGeometry) -> None:
        kernels = _kernels(call.operation)
        if kernels:
            # A transposed convolution places its kernel at every input sample.
            at = inputs[0] if isinstance(call.operation, keras.layers.Conv2DTranspose) else output
            places = math.prod(size or 1 for size in at.size)
            taps = sum(math.prod(kernel.shape) for kernel in kernels)
            counts[call.path] = counts.get(call.path, 0) + taps * places

    measure(model, height, width, see)
    return counts


def _kernels(operation: Any) -> list[Any]:
    if isinstance(operation, keras.layers.SeparableConv2D):
        return [operation.depthwise_kernel, operation.pointwise_kernel]
    if isinstance(
        operation,
        keras.layers.Conv2D
        | keras.layers.DepthwiseConv2D
        | keras.layers.Conv2DTranspose
        | keras.layers.Dense,
    ):
        return [operation.kernel]
    return []
