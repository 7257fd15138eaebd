"""Inference graphs: weights become constants, batch norms part of the convolutions before them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from keras_deeplab.layers.dilated_conv import Target, inference_graph

_CONVOLUTIONS = ("Conv2D", "DepthwiseConv2dNative")
_SAME_VALUE = ("Identity", "Cast", "ReadVariableOp")  # of a constant, but for its dtype

Outputs = dict[str, tf.Tensor]


class FrozenFunction:
    """A function of tensors without variables: call it, or give `concrete` to a converter.

    Args:
        compute: Function from tensors to a dict of tensors, traced once.
        signature: A spec with a name for each of its arguments.
        target: Where the graph will run; see `layers.dilated_conv.inference_graph`.
    """

    def __init__(
        self,
        compute: Callable[..., Outputs],
        signature: Sequence[tf.TensorSpec],
        target: Target = "here",
    ) -> None:
        traced = tf.function(compute, input_signature=signature, autograph=False)
        with inference_graph(target):
            concrete = traced.get_concrete_function()
        inputs = [tensor.name for tensor in concrete.inputs[: len(signature)]]
        outputs = [tensor.name for tensor in concrete.outputs]
        names = sorted(concrete.structured_outputs)  # the order of a flattened dict
        graph = with_constants(concrete)
        _Folding(graph).fold_all()
        graph = reachable(graph, [*inputs, *outputs])

        @tf.function(input_signature=signature, autograph=False)
        def imported(*values: tf.Tensor) -> Outputs:
            known = dict(zip(inputs, values, strict=True))
            found = tf.graph_util.import_graph_def(graph, known, outputs, name="")
            return dict(zip(names, found, strict=True))

        self.concrete = imported.get_concrete_function()

    def __call__(self, *inputs: tf.Tensor) -> Outputs:
        """Returns the outputs by name."""
        return self.concrete(*inputs)


def with_constants(concrete: Any) -> tf.compat.v1.GraphDef:
    """Returns the graph of a function with constants in place of its variables."""
    graph = concrete.graph.as_graph_def()
    captured = {placeholder.op.name: value for value, placeholder in concrete.graph.captures}
    users = {node.op for node in graph.node if captured.keys() & set(map(_name, node.input))}
    if graph.library.function or users - {"ReadVariableOp"}:
        # TensorFlow's own takes twice as long, as it copies the constants several times.
        constant = convert_variables_to_constants_v2(concrete, lower_control_flow=False)
        return constant.graph.as_graph_def()
    reads = {f"^{node.name}" for node in graph.node if node.op == "ReadVariableOp"}
    for node in graph.node:
        if node.op == "ReadVariableOp":
            dtype, variable = node.attr["dtype"].type, _name(node.input[0])
            if captured[variable].dtype == tf.resource:
                captured[variable] = tf.raw_ops.ReadVariableOp(
                    resource=captured[variable], dtype=dtype
                )
            _make(node, "Identity", node.input, dtype)
        else:
            node.input[:] = [name for name in node.input if name not in reads]
    for node in graph.node:
        if node.name in captured:
            _make_constant(node, tf.make_tensor_proto(captured[node.name].numpy()))
    return graph


def reachable(graph: tf.compat.v1.GraphDef, tensors: Sequence[str]) -> tf.compat.v1.GraphDef:
    """Returns the part of a graph that tensors are computed from.

    Folding leaves constants behind, and TensorFlow copies all of a graph several times.
    """
    nodes = {node.name: node for node in graph.node}
    found: dict[str, Any] = {}
    names = [_name(tensor) for tensor in tensors]
    while names:
        name = names.pop()
        if name not in found:
            found[name] = nodes[name]
            names += map(_name, nodes[name].input)
    return tf.compat.v1.GraphDef(
        node=found.values(), library=graph.library, versions=graph.versions
    )


class _Folding:
    """Makes batch norms in a graph of constants parts of the convolutions before them.

    A batch norm after anything else becomes a product and a sum.
    """

    def __init__(self, graph: tf.compat.v1.GraphDef) -> None:
        self.graph = graph
        self.nodes = {node.name: node for node in self.graph.node}
        self.kernels: dict[tuple[str, bytes, int], str] = {}
        self.uses = Counter(name for node in self.graph.node for name in map(_name, node.input))

    def fold_all(self) -> None:
        for node in list(self.graph.node):
            if node.op == "FusedBatchNormV3" and not node.attr["is_training"].b:
                values = [self.value(name) for name in node.input[1:]]
                if all(value is not None for value in values):
                    self.fold(node, *values)

    def value(self, name: str) -> np.ndarray | None:
        """The value of a constant, in float32."""
        node = self.nodes[self.origin(name)]
        if node.op != "Const":
            return None
        return tf.make_ndarray(node.attr["value"].tensor).astype(np.float32)

    def origin(self, name: str) -> str:
        """The constant itself: each call of a layer reads and casts its variables again."""
        node = self.nodes[_name(name)]
        return self.origin(node.input[0]) if node.op in _SAME_VALUE else node.name

    def bias(self, name: str, channels: int) -> np.ndarray | None:
        """The value of a constant with one number for each channel, to which Keras gives axes."""
        node = self.nodes[_name(name)]
        if node.op == "Squeeze":
            node = self.nodes[_name(node.input[0])]
        if node.op == "Reshape":
            value, shape = self.value(node.input[0]), self.value(node.input[1])
            value = None if value is None or shape is None else value.reshape(shape.astype(int))
        else:
            value = self.value(node.name)
        if value is None or value.shape[-1:] != (channels,) or value.size != channels:
            return None
        return value.ravel()

    def fold(self, norm: Any, scale: Any, offset: Any, mean: Any, variance: Any) -> None:
        factor = scale / np.sqrt(variance + norm.attr["epsilon"].f)
        shift = offset - mean * factor
        before, total = self.nodes[_name(norm.input[0])], shift
        if before.op in ("BiasAdd", "AddV2") and self.uses[before.name] == 1:
            bias = self.bias(before.input[1], shift.size)
            if bias is not None:
                total = shift + bias * factor
                before = self.nodes[_name(before.input[0])]
        kernel = self.value(before.input[1]) if before.op in _CONVOLUTIONS else None
        if kernel is not None and self.uses[before.name] == 1:
            factor = factor.reshape(kernel.shape[2:] if before.op != "Conv2D" else -1)
            dtype = before.attr["T"].type
            # The views of `MultiScale` share their layers, and so these kernels.
            key = (self.origin(before.input[1]), factor.tobytes(), dtype)
            if key not in self.kernels:
                name = f"{before.name}/folded"
                self.kernels[key] = self.constant(name, kernel * factor, dtype)
            before.input[1] = self.kernels[key]
            self.replace(norm, "BiasAdd", before.name, total)
        else:
            product = self.add(f"{norm.name}/product")
            product.attr["T"].CopyFrom(norm.attr["T"])
            self.replace(product, "Mul", norm.input[0], factor)
            self.replace(norm, "AddV2", product.name, shift)

    def replace(self, node: Any, op: str, tensor: str, value: np.ndarray) -> None:
        """Makes a node an operation of a tensor and a constant; its name and dtype stay."""
        dtype = node.attr["T"].type
        _make(node, op, [tensor, self.constant(f"{node.name}/constant", value, dtype)], dtype)

    def constant(self, name: str, value: np.ndarray, dtype: int) -> str:
        _make_constant(self.add(name), tf.make_tensor_proto(value, dtype))
        return name

    def add(self, name: str) -> Any:
        self.nodes[name] = self.graph.node.add(name=name)
        return self.nodes[name]


def _make(node: Any, op: str, inputs: Sequence[str], dtype: int) -> None:
    """Makes a node an operation of tensors of one dtype."""
    node.op, node.input[:] = op, list(inputs)
    node.attr.clear()
    node.attr["T"].type = dtype


def _make_constant(node: Any, value: Any) -> None:
    node.op = "Const"
    node.attr.clear()
    node.attr["dtype"].type = value.dtype
    node.attr["value"].tensor.CopyFrom(value)


def _name(tensor: str) -> str:
    """The node of a node's input, which may be one of several outputs or a control input."""
    return tensor.lstrip("^").split(":")[0]
