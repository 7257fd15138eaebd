"""How Keras stores the graph of a functional model: the one file that knows its internals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
from keras.src.applications.convnext import LayerScale, StochasticDepth
from keras.src.applications.inception_resnet_v2 import CustomScaleLayer
from keras.src.models.functional import Functional
from keras.src.ops.operation import Operation

from keras_deeplab.layers.composite import CompositeLayer, layers_inside

# Layers that keras.applications define for themselves and that work pixel by pixel.
APPLICATION_POINTWISE = (CustomScaleLayer, LayerScale, StochasticDepth)


@dataclass(frozen=True)
class Call:
    """One use of an operation in a graph: its place, what goes in and what comes out."""

    operation: Operation
    path: str
    inputs: tuple[keras.KerasTensor, ...]
    outputs: tuple[keras.KerasTensor, ...]


def is_network(operation: object) -> bool:
    """Tells whether an operation holds a graph that can be entered."""
    return isinstance(operation, Functional | keras.Sequential)


def functional(model: keras.Model) -> Functional:
    """Returns the functional graph of a model, or says why it has none."""
    if isinstance(model, keras.Sequential):
        if not model.built:
            raise ValueError(
                f"The Sequential model '{model.name}' has no graph yet: give it a keras.Input as "
                "its first layer."
            )
        return model._functional
    if not isinstance(model, Functional):
        raise ValueError(
            "A graph can only be read from a functional Keras model (keras.Model(inputs, outputs) "
            f"or a built keras.Sequential), received {type(model).__name__} "
            f"'{getattr(model, 'name', model)}'."
        )
    return model


def walk(
    model: keras.Model,
    values: Sequence[Any],
    visit: Callable[..., Any],
    prefix: str = "",
    left: Callable[[Call, list[Any]], None] | None = None,
) -> list[Any]:
    """Runs a model's graph on values of any kind.

    Nested models are entered, so `visit` only meets operations without a graph of their own.

    Args:
        model: A functional model or a built Sequential.
        values: One value for each of the model's inputs.
        visit: Called as `visit(call, *args, **kwargs)` with the operation's own arguments, every
            tensor replaced by its value; returns the value (or structure of values) of the output.
        prefix: Put before the names in `Call.path`.
        left: Called as `left(call, values)` when a nested model has been walked through.

    Returns:
        One value for each of the model's outputs.
    """
    network = functional(model)
    known = {id(tensor): value for tensor, value in zip(network.inputs, values, strict=True)}
    for node in _nodes(network):
        args, kwargs = node.arguments.fill_in(known)
        operation = node.operation
        path = prefix + operation.name
        call = Call(operation, path, tuple(node.input_tensors), tuple(node.outputs))
        if is_network(operation):
            outputs = walk(operation, keras.tree.flatten(args[0]), visit, path + "/", left)
            if left is not None:
                left(call, outputs)
        else:
            outputs = keras.tree.flatten(visit(call, *args, **kwargs))
        for tensor, value in zip(node.outputs, outputs, strict=True):
            known[id(tensor)] = value
    return [known[id(tensor)] for tensor in network.outputs]


def _nodes(network: Functional) -> list[Any]:
    """The graph's nodes in an order in which each comes after what it needs."""
    by_depth = network._nodes_by_depth
    return [
        node
        for depth in sorted(by_depth, reverse=True)
        for node in by_depth[depth]
        if node.operation is not None and not node.is_input
    ]


def trace(layer: CompositeLayer, inputs: Sequence[keras.KerasTensor]) -> Functional:
    """The graph inside a composite layer, as a functional model."""
    tensors = [keras.Input(batch_shape=x.shape, dtype=x.dtype) for x in inputs]
    return keras.Model(tensors, layer.call(*tensors))


def top_level_calls(model: keras.Model) -> list[Call]:
    """The operations of a model itself, nested models unopened, in order of computation."""
    return [
        Call(node.operation, node.operation.name, tuple(node.input_tensors), tuple(node.outputs))
        for node in _nodes(functional(model))
    ]


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


def leaf_layers(model: keras.Model, prefix: str = "") -> dict[str, keras.layers.Layer]:
    """All layers of a model and of the models nested in it, by path."""
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


def own_weights(layer: keras.layers.Layer) -> list[keras.Variable]:
    """The weights of a layer itself, without those of the layers inside it."""
    inner = layer._flatten_layers(include_self=False)
    others = {id(weight) for part in inner for weight in part.weights}
    return [weight for weight in layer.weights if id(weight) not in others]


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
    config = operation.get_config()
    unknown = set(changes) - set(config)
    if unknown:
        raise ValueError(
            f"The layer '{operation.name}' ({type(operation).__name__}) has no setting "
            f"{sorted(unknown)} to change."
        )
    config.update(changes)
    if isinstance(operation, keras.layers.Layer):
        config["name"] = name
    clone = made_class.from_config(config)
    clone.name = name
    return clone


def copy_weights(source: Operation, target: Operation) -> None:
    """Copies the weights of a layer to its clone; other operations have none."""
    if isinstance(source, keras.layers.Layer):
        for old, new in zip(source.weights, target.weights, strict=True):
            new.assign(old)
