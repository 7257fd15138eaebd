"""Feature taps: the tensors that a decoder wants, and the smallest image that has them all."""

from __future__ import annotations

import bisect

import keras

from keras_deeplab.graph.geometry import geometry
from keras_deeplab.graph.kinds import Kind, kind
from keras_deeplab.graph.network import functional, is_network, top_level_calls
from keras_deeplab.names import suggestion
from keras_deeplab.validation import error

_LARGEST_MINIMUM = 1024


def find_feature_tap(model: keras.Model, stride: int) -> str:
    """Finds the last tensor at a stride that everything after it depends on.

    It is what a decoder combines with the coarse features: every path from the image to the output
    runs through it, and the next layers leave its stride. Paddings, the layers inside nested
    models, and calls with several outputs are passed over.

    Args:
        model: A functional model with one output.
        stride: The tensor's stride in image pixels, along both axes.

    Returns:
        The name of the layer that produces it; if there is none, the `ValueError` lists the strides
        there are.

    Example:

    >>> network = keras.applications.VGG16(include_top=False, weights=None)
    >>> keras_deeplab.graph.find_feature_tap(network, 4)
    'block3_conv3'
    """
    found = geometry(model)
    strides = {name: found[tensor].stride for name, tensor in _cut_tensors(model)}
    names = [name for name, value in strides.items() if value == (stride, stride)]
    if not names:
        listed = sorted({max(value) for value in strides.values() if None not in value})
        rule = f"one of {listed}, the strides of the tensors in '{model.name}' that all later "
        raise error("stride", rule + "layers depend on", stride, "Name a layer instead.")
    return names[-1]


def _cut_tensors(model: keras.Model) -> list[tuple[str, keras.KerasTensor]]:
    """The tensors that every path to the output runs through, in order of computation."""
    calls = top_level_calls(model)
    last_use = {id(x): index for index, call in enumerate(calls) for x in call.inputs}
    last_use |= {id(x): len(calls) for x in functional(model).outputs}
    cuts, open_until = [], max(last_use.get(id(x), 0) for x in functional(model).inputs)
    for index, call in enumerate(calls):
        is_padding = (
            not is_network(call.operation)
            and kind(call.operation, call.path, call.rank) is Kind.PAD
        )
        if open_until <= index and len(call.outputs) == 1 and not is_padding:
            cuts.append((call.path, call.outputs[0]))
        open_until = max(open_until, *(last_use.get(id(x), index) for x in call.outputs))
    return cuts


def minimum_size(model: keras.Model) -> tuple[int, int]:
    """The smallest square image for which every map of a network has a sample.

    Returns:
        (height, width) in pixels, of at most 1024, else a `ValueError` is raised. A size that the
        model fixes is returned as it is.

    Example:

    >>> network = keras.applications.VGG16(include_top=False, weights=None)
    >>> keras_deeplab.graph.minimum_size(network)
    (32, 32)
    """
    own = functional(model).inputs[0].shape[1:3]

    def is_large_enough(size: int) -> bool:
        try:
            geometry(model, *(fixed or size for fixed in own))
        except ValueError:
            return False
        return True

    geometry(model)  # an error that has nothing to do with the size
    size = 1  # doubled first, as larger sizes may fail where maps are merged
    while not is_large_enough(size):
        size *= 2
        if size > _LARGEST_MINIMUM:
            raise error("model", f"a network for images of up to {_LARGEST_MINIMUM} pixels", model)
    sizes = range(size // 2 + 1, size)
    smallest = size // 2 + 1 + bisect.bisect_left(sizes, True, key=is_large_enough)
    return tuple(fixed or smallest for fixed in own)


def tensor_of(model: keras.Model, layer_name: str) -> keras.KerasTensor:
    """The output tensor of a layer or nested model (at its last use) of a functional model."""
    calls = {call.path: call for call in top_level_calls(model)}
    if layer_name not in calls:
        advice = suggestion(layer_name, calls)
        raise error("layer_name", f"a layer of the network '{model.name}'", layer_name, advice)
    outputs = calls[layer_name].outputs
    if len(outputs) != 1:
        raise error("layer_name", "a layer with one output", layer_name)
    return outputs[0]
