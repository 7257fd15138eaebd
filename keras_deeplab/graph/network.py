"""Walking graphs, cloning and watching layers: the one file that knows Keras' internals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
from keras.src.applications.convnext import LayerScale, StochasticDepth
from keras.src.applications.inception_resnet_v2 import CustomScaleLayer
from keras.src.models.functional import Functional
from keras.src.ops.operation import Operation

from keras_deeplab.layers.composite import CompositeLayer, layers_inside
from keras_deeplab.validation import error

# Layers that keras.applications define for themselves and that work pixel by pixel.
APPLICATION_POINTWISE = (CustomScaleLayer, LayerScale, StochasticDepth)


@dataclass(frozen=True)
class Call:
    """One use of an operation in a graph.

    Attributes:
        operation: A layer, or one of Keras' operations.
        path: Its name, after those of the models and composite layers that it is in.
        inputs: Its symbolic input tensors.
        outputs: Its symbolic output tensors.
        arguments: All arguments of the call, in Keras' own form.
    """

    operation: Operation
    path: str
    inputs: tuple[keras.KerasTensor, ...]
    outputs: tuple[keras.KerasTensor, ...]
    arguments: Any


def layer_error(rule: str, path: str, detail: str) -> ValueError:
    """Returns the error of a network that a graph function cannot work on because of a layer."""
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
    visit: Callable[..., Any],
    *,
    composites: bool = False,
    left: Callable[[Call, list[Any]], None] | None = None,
    prefix: str = "",
) -> list[Any]:
    """Runs a model's graph on values of any kind.

    Nested models are entered, so that `visit` is only called for operations without a
    graph of their own.

    Args:
        model: A functional model or a built Sequential.
        values: One value for each of the model's inputs.
        visit: Called as `visit(call, *args, **kwargs)` with the operation's own arguments, every
            tensor replaced by its value; returns the value (or structure of values) of the output.
        composites: Whether composite layers are entered too.
        left: Called as `left(call, values)` after each nested model or composite layer.
        prefix: Put before the names in `Call.path`.

    Returns:
        One value for each of the model's outputs.
    """
    network = functional(model)
    known = {id(tensor): value for tensor, value in zip(network.inputs, values, strict=True)}
    for call in top_level_calls(network, prefix):
        inner = call.operation if is_network(call.operation) else None
        if composites and isinstance(call.operation, CompositeLayer):
            inner = call.operation.graph(*(x.shape for x in call.inputs))
        if inner is None:
            args, kwargs = call.arguments.fill_in(known)
            outputs = keras.tree.flatten(visit(call, *args, **kwargs))
        else:
            entering = [known[id(x)] for x in call.inputs]
            options = {"composites": composites, "left": left, "prefix": call.path + "/"}
            outputs = walk(inner, entering, visit, **options)
            if left is not None:
                left(call, outputs)
        for tensor, value in zip(call.outputs, outputs, strict=True):
            known[id(tensor)] = value
    return [known[id(tensor)] for tensor in network.outputs]


def like(
    model: keras.Model, inputs: list[keras.KerasTensor], outputs: list[keras.KerasTensor]
) -> keras.Model:
    """A functional model over new tensors with the inputs and outputs arranged as in `model`."""
    network = functional(model)
    return keras.Model(
        keras.tree.pack_sequence_as(network._inputs_struct, inputs),
        keras.tree.pack_sequence_as(network._outputs_struct, outputs),
        name=model.name,
    )


def input_name(tensor: keras.KerasTensor) -> str:
    """The name of the input layer that a model's input comes from."""
    return tensor._keras_history.operation.name


def leaf_layers(model: keras.Model, prefix: str = "") -> dict[str, keras.layers.Layer]:
    """All layers of a model and of the models nested in it, by path; composites are not entered."""
    found: dict[str, keras.layers.Layer] = {}
    for layer in model.layers:
        if is_network(layer):
            found.update(leaf_layers(layer, f"{prefix}{layer.name}/"))
        else:
            found[prefix + layer.name] = layer
    return found


def all_layers(model: keras.Model) -> dict[str, keras.layers.Layer]:
    """All layers by path, each before those inside it; networks and composites are entered."""
    found: dict[str, keras.layers.Layer] = {}
    for layer in model.layers:
        found[layer.name] = layer
        found.update(layers_inside(layer, f"{layer.name}/"))
    return found


def all_norms(model: keras.Model) -> dict[str, keras.layers.BatchNormalization]:
    """All batch norms of a model, one that is used at several places under its first path."""
    found: dict[str, keras.layers.BatchNormalization] = {}
    for path, layer in all_layers(model).items():
        if isinstance(layer, keras.layers.BatchNormalization) and layer not in found.values():
            found[path] = layer
    return found


def own_weights(layer: keras.layers.Layer) -> list[keras.Variable]:
    """The weights of a layer itself, without those of the layers inside it."""
    inner = layer._flatten_layers(include_self=False)
    others = {id(weight) for part in inner for weight in part.weights}
    return [weight for weight in layer.weights if id(weight) not in others]


@contextmanager
def intercepted_calls(
    layers: Mapping[str, keras.layers.Layer], around: Callable[..., Any]
) -> Iterator[None]:
    """Runs a function in place of each layer's `call`, to record activations or to replace them.

    Args:
        layers: Layers by path, as of `all_layers`. One with several paths is intercepted once,
            under its first.
        around: Called as `around(path, call, *args, **kwargs)`, where `call` is the layer's own
            method; returns the layer's outputs.

    Example:

    >>> from keras_deeplab.graph.network import all_layers, intercepted_calls
    >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, name="conv")])
    >>> shapes = {}
    >>> def record(path, call, *args, **kwargs):
    ...     outputs = call(*args, **kwargs)
    ...     shapes[path] = tuple(outputs.shape)
    ...     return outputs
    >>> with intercepted_calls(all_layers(model), record):
    ...     outputs = model(keras.ops.ones((1, 8, 8, 3)))
    >>> shapes
    {'conv': (1, 6, 6, 4)}
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


def clone_operation(
    operation: Operation, name: str, made_class: type[Operation], **changes: Any
) -> Operation:
    """A new operation with the same configuration but for the changes, without its weights.

    Args:
        operation: What is cloned.
        name: Of the clone.
        made_class: The clone's, which takes the configuration: the operation's or a subclass.
        **changes: Settings that are other than the operation's.
    """
    config = {**operation.get_config(), **changes}
    if isinstance(operation, keras.layers.Layer):
        config["name"] = name
    clone = made_class.from_config(config)
    clone.name = name
    return clone


@contextmanager
def without_initial_values(operation: Operation) -> Iterator[None]:
    """Builds a layer that is about to get weights with zeros: drawing random kernels is slow."""
    held = []
    if isinstance(operation, keras.layers.Layer) and not operation.built:
        for layer in (operation, *layers_inside(operation).values()):
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


def copy_weights(source: Operation, target: Operation) -> None:
    """Copies the weights of a layer to its clone; other operations have none."""
    if isinstance(source, keras.layers.Layer):
        for old, new in zip(source.weights, target.weights, strict=True):
            new.assign(old)


def forget_calls(model: keras.Model) -> None:
    """Prepares the layers of a model for use in another: `layer.output` is that of the next call.

    The model itself can still be walked, but no longer be called or cut into parts.
    """
    for call in top_level_calls(model):
        if is_network(call.operation):
            forget_calls(call.operation)
        call.operation._inbound_nodes.clear()
        call.operation._outbound_nodes.clear()
