"""Walking graphs, cloning and watching layers: where most internals of Keras are used."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
from keras.src.applications.convnext import LayerScale, StochasticDepth
from keras.src.applications.inception_resnet_v2 import CustomScaleLayer
from keras.src.backend.common import global_state
from keras.src.models.functional import Functional
from keras.src.ops.operation import Operation

from keras_deeplab.layers.composite import all_layers
from keras_deeplab.validation import error

# Layers that keras.applications define for themselves and that work pixel by pixel.
APPLICATION_POINTWISE = (CustomScaleLayer, LayerScale, StochasticDepth)


@dataclass(frozen=True)
class Call:
    """One use of an operation; `path` begins with the models and composite layers that it is in."""

    operation: Operation
    path: str
    inputs: tuple[keras.KerasTensor, ...]
    outputs: tuple[keras.KerasTensor, ...]
    arguments: Any

    @property
    def rank(self) -> int:
        """The number of axes of its result."""
        return len(self.outputs[0].shape)


def layer_error(rule: str, path: str, detail: str) -> ValueError:
    """Returns the error of a network with a layer that a graph function cannot work on."""
    return ValueError(f"`model` must have {rule}. Received: the layer '{path}' {detail}")


def is_network(operation: object) -> bool:
    """Whether an operation holds a graph that can be entered."""
    return isinstance(operation, Functional | keras.Sequential)


def functional(model: keras.Model) -> Functional:
    """Returns the functional graph of a model, or raises a `ValueError` if it has none."""
    if isinstance(model, keras.Sequential) and model.built:
        return model._functional
    if isinstance(model, Functional):
        return model
    rule = "a functional Keras model (keras.Model(inputs, outputs)) or a built keras.Sequential"
    advice = "Give a Sequential a keras.Input as its first layer."
    raise error("model", rule, model, advice if isinstance(model, keras.Sequential) else "")


def top_level_calls(model: keras.Model, prefix: str = "") -> list[Call]:
    """The calls in a model itself, nested models unopened, each after those it depends on."""
    by_depth = functional(model)._nodes_by_depth
    return [
        Call(
            node.operation,
            prefix + node.operation.name,
            tuple(node.input_tensors),
            tuple(node.outputs),
            node.arguments,
        )
        for depth in sorted(by_depth, reverse=True)
        for node in by_depth[depth]
        if node.operation is not None and not node.is_input
    ]


def walk(
    model: keras.Model,
    values: Sequence[Any],
    visit: Callable[[Call, list[Any]], Sequence[Any]],
    prefix: str = "",
) -> list[Any]:
    """Runs a model's graph on values of any kind: one per input, returns one per output.

    `visit(call, values)` gets one value for each of a call's input tensors and returns one for each
    output. A nested model is such a call too; `visit` enters it with another `walk`.
    """
    network = functional(model)
    known = {id(tensor): value for tensor, value in zip(network.inputs, values, strict=True)}
    for call in top_level_calls(network, prefix):
        outputs = visit(call, [known[id(tensor)] for tensor in call.inputs])
        known.update(zip(map(id, call.outputs), outputs, strict=True))
    return [known[id(tensor)] for tensor in network.outputs]


def leaf_layers(model: keras.Model, prefix: str = "") -> dict[str, keras.layers.Layer]:
    """All layers of a model and of the models nested in it, by path; composites are not entered."""
    found: dict[str, keras.layers.Layer] = {}
    for layer in model.layers:
        if is_network(layer):
            found.update(leaf_layers(layer, f"{prefix}{layer.name}/"))
        else:
            found[prefix + layer.name] = layer
    return found


def all_norms(model: keras.Model) -> dict[str, keras.layers.BatchNormalization]:
    """All batch norms of a model, one that is used at several places under its first path."""
    found: dict[str, keras.layers.BatchNormalization] = {}
    for path, layer in all_layers(model).items():
        if isinstance(layer, keras.layers.BatchNormalization) and layer not in found.values():
            found[path] = layer
    return found


def own_weights(layer: keras.layers.Layer) -> dict[str, keras.Variable]:
    """The weights of a layer itself by name, without those of the layers inside it.

    Weights without a name of their own in the layer have their place as a name.
    """
    inner = layer._flatten_layers(include_self=False)
    others = {id(weight) for part in inner for weight in part.weights}
    found: dict[str, keras.Variable] = {}
    for place, weight in enumerate(layer.weights):
        if id(weight) not in others:
            numbered = weight.name in found or re.fullmatch(r"variable(_\d+)?", weight.name)
            found[f"variable_{place}" if numbered else weight.name] = weight
    return found


def copy_weights(source: keras.layers.Layer, target: keras.layers.Layer) -> None:
    """Copies the weights of a layer into one with weights of the same shapes in the same order."""
    for old, new in zip(source.weights, target.weights, strict=True):
        new.assign(old)
    finalize_state(target)


def finalize_state(layer: keras.layers.Layer) -> None:
    """Ends every assignment of weights: `Normalization` computes with constants made of its own."""
    for inner in layer._flatten_layers():
        if isinstance(inner, keras.layers.Normalization):
            inner.finalize_state()


def is_outermost(layer: keras.layers.Layer) -> bool:
    """Whether a layer that is called is not called by another one."""
    context = global_state.get_global_attribute("current_call_ctx")
    return context is None or context.entry_layer is layer


@contextmanager
def intercepted_calls(
    layers: Mapping[str, keras.layers.Layer], around: Callable[..., Any]
) -> Iterator[None]:
    """Runs `around(path, call, *args, **kwargs)` in place of the `call` of each of these layers.

    A layer with several paths is intercepted once, under its first.
    """
    intercepted: list[keras.layers.Layer] = []
    try:
        for path, layer in layers.items():
            if layer not in intercepted:
                layer.call = partial(around, path, layer.call)
                intercepted.append(layer)
        yield
    finally:
        for layer in intercepted:
            del layer.call  # the class's own again


@contextmanager
def dtype_policy(policy: str | keras.DTypePolicy) -> Iterator[None]:
    """Sets the dtype policy of the layers made inside."""
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(previous)


@contextmanager
def without_initial_values(operation: Operation) -> Iterator[None]:
    """Builds a layer that is about to get weights with zeros: drawing random kernels is slow."""
    held = []
    if isinstance(operation, keras.layers.Layer) and not operation.built:
        for layer in (operation, *all_layers(operation).values()):
            for name, value in vars(layer).items():
                if isinstance(value, keras.initializers.Initializer):
                    held.append((layer, name, value))
    for layer, name, _ in held:
        setattr(layer, name, keras.initializers.Zeros())
    try:
        yield
    finally:
        for layer, name, value in held:
            setattr(layer, name, value)


def forget_call(call: Call) -> None:
    """Forgets a call that another takes the place of: `operation.output` is that of the next."""
    call.operation._inbound_nodes.clear()
    for tensor in call.inputs:  # else they would keep a replaced layer in memory
        tensor._keras_history.operation._outbound_nodes.clear()
