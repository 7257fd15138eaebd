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
        constant = convert_variables_to_constants_v2(concrete, lower_control_flow=False)
        graph = fold_batch_norms(constant.graph.as_graph_def())
        inputs = [tensor.name for tensor in constant.inputs]
        outputs = [tensor.name for tensor in constant.outputs]

        @tf.function(input_signature=signature, autograph=False)
        def imported(*values: tf.Tensor) -> Outputs:
            known = dict(zip(inputs, values, strict=True))
            found = tf.graph_util.import_graph_def(graph, known, outputs, name="")
            # The order of a flattened dict is that of its keys.
            return dict(zip(sorted(concrete.structured_outputs), found, strict=True))

        self.concrete = imported.get_concrete_function()

    def __call__(self, *inputs: tf.Tensor) -> Outputs:
        """Returns the outputs by name."""
        return self.concrete(*inputs)


def fold_batch_norms(graph: tf.compat.v1.GraphDef) -> tf.compat.v1.GraphDef:
    """Returns a graph of constants in which batch norms are parts of the convolutions before them.

    A batch norm after anything else becomes a product and a sum.
    """
    return _Folding(graph).folded()


class _Folding:
    def __init__(self, graph: tf.compat.v1.GraphDef) -> None:
        self.graph = tf.compat.v1.GraphDef()
        self.graph.CopyFrom(graph)
        self.nodes = {node.name: node for node in self.graph.node}
        self.uses = Counter(name for node in self.graph.node for name in map(_name, node.input))

    def folded(self) -> tf.compat.v1.GraphDef:
        for node in list(self.graph.node):
            if node.op == "FusedBatchNormV3" and not node.attr["is_training"].b:
                values = [self.value(name) for name in node.input[1:]]
                if all(value is not None for value in values):
                    self.fold(node, *values)
        return self.graph

    def value(self, name: str) -> np.ndarray | None:
        """The value of a constant, in float32."""
        node = self.nodes[_name(name)]
        if node.op == "Const":
            return tf.make_ndarray(node.attr["value"].tensor).astype(np.float32)
        return self.value(node.input[0]) if node.op in _SAME_VALUE else None

    def fold(self, norm: Any, scale: Any, offset: Any, mean: Any, variance: Any) -> None:
        factor = scale / np.sqrt(variance + norm.attr["epsilon"].f)
        shift = offset - mean * factor
        before = self.nodes[_name(norm.input[0])]
        if before.op in ("BiasAdd", "AddV2") and self.uses[before.name] == 1:
            bias = self.value(before.input[1])
            if bias is not None and bias.size == shift.size:
                shift, before = shift + bias.ravel() * factor, self.nodes[_name(before.input[0])]
        kernel = self.value(before.input[1]) if before.op in _CONVOLUTIONS else None
        if kernel is not None and self.uses[before.name] == 1:
            factor = factor.reshape(kernel.shape[2:] if before.op != "Conv2D" else -1)
            dtype = before.attr["T"]
            before.input[1] = self.constant(f"{before.name}/folded", kernel * factor, dtype)
            self.replace(norm, "BiasAdd", before.name, shift)
        else:
            product = self.graph.node.add(name=f"{norm.name}/product")
            product.attr["T"].CopyFrom(norm.attr["T"])
            self.replace(product, "Mul", norm.input[0], factor)
            self.replace(norm, "AddV2", product.name, shift)

    def replace(self, node: Any, op: str, tensor: str, value: np.ndarray) -> None:
        """Makes a node an operation of a tensor and a constant; its name and dtype stay."""
        dtype = tf.compat.v1.AttrValue()
        dtype.CopyFrom(node.attr["T"])
        node.op = op
        node.attr.clear()
        node.attr["T"].CopyFrom(dtype)
        node.input[:] = [tensor, self.constant(f"{node.name}/constant", value, dtype)]

    def constant(self, name: str, value: np.ndarray, dtype: Any) -> str:
        node = self.graph.node.add(name=name, op="Const")
        node.attr["dtype"].CopyFrom(dtype)
        node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value, dtype.type))
        return name


def _name(tensor: str) -> str:
    """The node of a node's input, which may be one of several outputs or a control input."""
    return tensor.lstrip("^").split(":")[0]
