"""Finding the tensors that a decoder wants, and the smallest image a network takes."""

from __future__ import annotations

import difflib
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
        strides = sorted(
            {found[tensor].stride for _, tensor in cuts if None not in found[tensor].stride}
        )
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
    """The least square image for which every map of a network has a sample.

    Args:
        model: A functional model.

    Returns:
        (height, width) in pixels; a size that the model fixes is returned as it is.

    Raises:
        ValueError: If the network needs more than 1024 pixels.

    Example:

    >>> network = keras.applications.VGG16(include_top=False, weights=None)
    >>> keras_deeplab.graph.minimum_size(network)
    (32, 32)
    """
    geometry(model)  # what is wrong whatever the size is said here
    fixed = functional(model).inputs[0].shape[1:3]
    low, high = 1, _LARGEST_MINIMUM
    if _fits(model, fixed, low):
        high = low
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _fits(model, fixed, middle) else (middle + 1, high)
    if not _fits(model, fixed, low):
        raise ValueError(
            f"The network '{model.name}' needs images of more than {_LARGEST_MINIMUM} pixels."
        )
    height, width = (low if size is None else size for size in fixed)
    return (height, width)


def _fits(model: keras.Model, fixed: tuple[int | None, int | None], size: int) -> bool:
    try:
        geometry(model, *(size if known is None else None for known in fixed))
    except ValueError:
        return False
    return True


def tensor_of(model: keras.Model, layer_name: str) -> keras.KerasTensor:
    """The output tensor of a layer (at its last use) of the model itself.

    Args:
        model: A functional model.
        layer_name: Name of one of its layers; a nested model stands for its output.

    Raises:
        ValueError: If there is no such layer, or it has several outputs.
    """
    calls = {call.path: call for call in top_level_calls(model)}
    if layer_name not in calls:
        near = difflib.get_close_matches(layer_name, calls, n=3, cutoff=0.4)
        raise ValueError(
            f"The network '{model.name}' has no layer '{layer_name}'"
            + (f"; similar names: {', '.join(near)}." if near else ".")
        )
    outputs = calls[layer_name].outputs
    if len(outputs) != 1:
        raise ValueError(f"The layer '{layer_name}' has {len(outputs)} outputs; one is needed.")
    return outputs[0]
