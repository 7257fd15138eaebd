"""The cost of a network: multiply-adds, layer by layer."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import keras
from keras import layers as kl

from keras_deeplab.graph.geometry import geometry


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
    counts: Counter[str] = Counter()
    for call, inputs, output in geometry(model, height, width).calls:
        for kernel in _kernels(call.operation):
            # A transposed convolution places its kernel at every input sample.
            at = inputs[0] if isinstance(call.operation, kl.Conv2DTranspose) else output
            counts[call.path] += math.prod(kernel.shape) * math.prod(n or 1 for n in at.size)
    return dict(counts)


def _kernels(operation: Any) -> list[keras.Variable]:
    if isinstance(operation, kl.SeparableConv2D):
        return [operation.depthwise_kernel, operation.pointwise_kernel]
    with_kernel = kl.Conv2D | kl.DepthwiseConv2D | kl.Conv2DTranspose | kl.Dense
    return [operation.kernel] if isinstance(operation, with_kernel) else []
