"""The cost of a network: multiply-adds, layer by layer."""

from __future__ import annotations

import math
from collections import Counter

import keras

from keras_deeplab.graph.geometry import geometry


def multiply_adds(model: keras.Model, height: int, width: int) -> dict[str, int]:
    """Counts the multiply-adds of every convolution and dense layer for one image.

    Taps that fall into padding are counted, biases, norms, activations and resizing are not.

    Args:
        model, height, width: As of `geometry`.

    Returns:
        A dict from layer name (`"outer/inner"` in nested models and composite layers) to its
        multiply-adds; the network's are `sum(counts.values())`.

    Example:

    >>> network = keras.applications.VGG16(include_top=False, weights=None)
    >>> sum(keras_deeplab.graph.multiply_adds(network, 224, 224).values())
    15346630656
    """
    counts: Counter[str] = Counter()
    for call, inputs, output in geometry(model, height, width).calls:
        # A transposed convolution places its kernel at every input sample.
        at = inputs[0] if isinstance(call.operation, keras.layers.Conv2DTranspose) else output
        samples = math.prod(n or 1 for n in at.size)
        for weight in getattr(call.operation, "weights", ()):
            if weight.name.endswith("kernel"):
                counts[call.path] += math.prod(weight.shape) * samples
    return dict(counts)
