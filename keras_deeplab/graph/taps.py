"""Finding the tensors that a decoder wants, and the smallest image a network takes."""

from __future__ import annotations

from typing import Any

import keras

from keras_deeplab.graph.describe import Kind, kind
from keras_deeplab.graph.geometry import geometry
from keras_deeplab.graph.network import functional, is_network, top_level_calls

_LARGEST_MINIMUM = 1024


def find_tap(model: keras.Model, stride: int) -> str:
    """Finds the last tensor at a stride that everything behind it depends on.

    Where a network's stages end, this is the tensor that a decoder combines with the coarse
    features: every path from the image to the output runs through it, and the next layers leave
    its stride. Paddings are passed over. Only layers of the model itself are candidates, not
    those inside nested models.

    Args:
        model: A functional model with one output.
        stride: The tensor's stride in image pixels, along both axes.

    Returns:
        The name of the layer that produces it.

    Raises:
        ValueError: If there is no such tensor; the error lists the strides there are.

    Example:

    >>> network = keras.applications.VGG16(include_top=False, weights=None)
    >>> keras_deeplab.graph.find_tap(network, 4)
    'block3_conv3'
    """
    found = geometry(model)
    cuts = _cut_tensors(model)
    names = [name for name, tensor in cuts if found[tensor].stride == (stride, stride)]
    if not names:
        strides = sorted({found[tensor].stride for _, tensor in cuts if None not in found[tensor].stride})
        raise ValueError(
            f"The network '{model.name}' has no tensor at stride {stride} that all later layers "
            f"depend on; there are tensors at {strides}. Name a layer instead."
        )
    return names[-1]


def _cut_tensors(model: keras.Model) -> list[tuple[str, keras.KerasTensor]]:
    """The tensors that every path to the output runs through, in order of computation."""
    calls = top_level_calls(model)
    last_use = {id(x): index for index, call in enumerate(calls) for x in call.inputs}
    cuts, open_until = [], 0
    for index, call in enumerate(calls):
        (tensor,) = call.outputs
        if open_until <= index and not _is_padding(call.operation):
            cuts.append((call.path, tensor))
        open_until = max(open_until, last_use.get(id(tensor), len(calls)))
    return cuts


def _is_padding(operation: Any) -> bool:
    return not is_network(operation) and kind(operation, operation.name) is Kind.PAD


def minimum_size(model: keras.Model) -> tuple[int, int]:
    """The least height and width of an image for which every map of a network has a sample.

    Args:
        model: A functional model.

    Returns:
        (height, width) in pixels.

    Raises:
        ValueError: If the network needs more than 1024 pixels.

    Example:

    >>> network = keras.applications.VGG16(include_top=False, weights=None)
    >>> keras_deeplab.graph.minimum_size(network)
    (32, 32)
    """
    geometry(model)  # what is wrong whatever the size is said here
    fixed = functional(model).inputs[0].shape[1:3]
    sizes = []
    for axis in (0, 1):
        low, high = 1, _LARGEST_MINIMUM
        if fixed[axis] is not None:
            sizes.append(fixed[axis])
            continue
        while low < high:
            middle = (low + high) // 2
            image = [_LARGEST_MINIMUM, _LARGEST_MINIMUM]
            image[axis] = middle
            low, high = (low, middle) if _fits(model, *image) else (middle + 1, high)
        sizes.append(low)
    return (sizes[0], sizes[1])


def _fits(model: keras.Model, height: int, width: int) -> bool:
    try:
        geometry(model, height, width)
    except ValueError:
        return False
    return True
