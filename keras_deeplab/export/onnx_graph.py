"""From an inference graph to an ONNX graph that ONNX Runtime and OpenVINO run, and run fast."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_deeplab.frozen import FrozenFunction

if TYPE_CHECKING:
    import onnx

OPSET = 18  # the first in which a resize names its axes; all runtimes have its operations
_INT64 = 7  # of ONNX' data types
AXES = ("batch", "height", "width")
_LOCK = threading.Lock()


def onnx_graph(frozen: FrozenFunction) -> onnx.ModelProto:
    """Converts a function of images, traced for "converter"; the names of its outputs stay."""
    from tf2onnx import convert

    concrete = frozen.concrete
    (images,) = concrete.inputs
    names = dict(zip(sorted(concrete.structured_outputs), concrete.outputs, strict=True))
    with _quiet_without_copies():
        model, _ = convert.from_graph_def(
            concrete.graph.as_graph_def(),
            input_names=[images.name],
            output_names=[tensor.name for tensor in names.values()],
            tensors_to_rename={
                images.name: "images",
                **{tensor.name: name for name, tensor in names.items()},
            },
            custom_op_handlers={"ResizeBilinear": (_resize, []), "ReverseV2": (_reverse, [])},
            opset=OPSET,
        )
    _Tidying(model.graph).tidied()
    return model


@contextmanager
def _quiet_without_copies() -> Iterator[None]:
    """tf2onnx without warnings, and without its two copies of the weights for each of its passes.

    They take 8 GB for a network of 120 MB. One conversion at a time: both are of the process.
    """
    from tf2onnx import optimizer

    def without_copies(graph: Any, *_: Any, **__: Any) -> Any:
        graph.update_proto = lambda *_, **__: None  # of each pass; `make_model` writes it anyway
        try:
            return optimize(graph, catch_errors=False)
        finally:
            del graph.update_proto

    log = logging.getLogger("tensorflow")
    with _LOCK:
        level, optimize = log.level, optimizer.optimize_graph
        log.setLevel(logging.ERROR)  # not of deprecated functions, which tf2onnx uses
        optimizer.optimize_graph = without_copies
        try:
            yield
        finally:
            optimizer.optimize_graph = optimize
            log.setLevel(level)


def _resize(graph: Any, node: Any, *_: Any) -> None:
    """A resize with the channels last, twice as fast, unless a convolution follows.

    tf2onnx itself writes scales for fixed sizes, with which the size may be a pixel off.
    """
    (x, size), (result,) = node.input, node.output
    made = {"name": node.name, "outputs": [result]}
    made |= {"shapes": node.output_shapes, "dtypes": node.output_dtypes}
    before, after = (shape[1:3] for shape in (graph.get_shape(x), graph.get_shape(result)))
    is_inner = _leads_to_convolution(graph, node)
    mode = "align_corners" if node.get_attr_value("align_corners") else "half_pixel"
    attributes = {"mode": "linear", "coordinate_transformation_mode": mode}
    graph.remove_node(node.name)
    known = min(*before, *after) > 0
    if is_inner:
        x = graph.make_node("Transpose", [x], {"perm": [0, 3, 1, 2]}).output[0]
    if is_inner and known and not np.any(np.mod(after, before)):
        # ONNX Runtime resizes in the layout of its convolutions by constant scales only.
        factors = np.array([1, 1, *np.floor_divide(after, before)], np.float32)
        inputs = [x, "", graph.make_const(f"{made['name']}/scales", factors).output[0]]
    else:
        size = graph.make_node("Cast", [size], {"to": _INT64}).output[0]
        if is_inner:  # without axes, which ONNX Runtime's optimizer of int8 graphs ignores
            first = graph.make_node("Shape", [x], {"end": 2}).output[0]
            size = graph.make_node("Concat", [first, size], {"axis": 0}).output[0]
        else:
            attributes["axes"] = [1, 2]
        inputs = [x, "", "", size]
    if is_inner:
        x = graph.make_node("Resize", inputs, attributes).output[0]
        graph.make_node("Transpose", [x], {"perm": [0, 2, 3, 1]}, **made)
    else:
        graph.make_node("Resize", inputs, attributes, **made)


def _leads_to_convolution(graph: Any, node: Any) -> bool:
    found, todo = set(), [node]
    while todo:
        for output in todo.pop().output:
            for consumer in graph.find_output_consumers(output):
                if "Conv" in consumer.type:
                    return True
                if consumer.name not in found:
                    found.add(consumer.name)
                    todo.append(consumer)
    return False


def _reverse(graph: Any, node: Any, *_: Any) -> None:
    """A slice with steps of -1, in place of tf2onnx's transposes around a `ReverseSequence`."""
    axes = node.inputs[1].get_tensor_value(as_list=False).astype(np.int64)
    slices = {"start": -1, "end": np.iinfo(np.int64).min, "axes": axes, "step": -1}
    constants = [
        graph.make_const(f"{node.name}/{name}", np.full_like(axes, value)).output[0]
        for name, value in slices.items()
    ]
    made = {"name": node.name, "outputs": node.output}
    made |= {"shapes": node.output_shapes, "dtypes": node.output_dtypes}
    inputs = [node.input[0], *constants]
    graph.remove_node(node.name)
    graph.make_node("Slice", inputs, **made)


class _Tidying:
    """Passes over a graph, for what the runtimes refuse or compute slowly."""

    def __init__(self, graph: Any) -> None:
        from onnx import helper, numpy_helper

        self.helper, self.arrays = helper, numpy_helper
        self.graph = graph
        self.maker = {name: node for node in graph.node for name in node.output}
        self.constants = {constant.name: constant for constant in graph.initializer}

    def tidied(self) -> None:
        for node in list(self.graph.node):
            if node.op_type == "Conv":
                self.write_padding(node)
            if node.op_type in ("Conv", "MaxPool"):
                self.take_in_padding(node)
            if node.op_type in ("Softmax", "LogSoftmax") and self.attributes(node).get("axis") == 1:
                self.write_out(node)
        self.remove_unused()
        for value in [*self.graph.input, *self.graph.output]:
            for axis, name in zip(value.type.tensor_type.shape.dim, AXES, strict=False):
                if not axis.dim_value:
                    axis.dim_param = name

    def attributes(self, node: Any) -> dict[str, Any]:
        return {a.name: self.helper.get_attribute_value(a) for a in node.attribute}

    def pad(self, node: Any, pads: Any) -> None:
        others = [a for a in node.attribute if a.name not in ("auto_pad", "pads")]
        del node.attribute[:]
        pads = self.helper.make_attribute("pads", [int(n) for n in pads])
        node.attribute.extend([*others, pads])

    def write_padding(self, conv: Any) -> None:
        """Numbers in place of "same", which ONNX Runtime refuses where a kernel is dilated."""
        found = self.attributes(conv)
        if found.get("auto_pad") == b"SAME_UPPER" and max(found["strides"]) == 1:
            sizes = zip(found["kernel_shape"], found["dilations"], strict=True)
            total = np.array([(size - 1) * rate for size, rate in sizes])
            self.pad(conv, [*total // 2, *total - total // 2])

    def take_in_padding(self, node: Any) -> None:
        """Makes a padding by zeros part of what it is for, which saves a copy of the map."""
        before, found = self.maker.get(node.input[0]), self.attributes(node)
        if before is None or before.op_type != "Pad" or found.get("auto_pad", b"VALID") != b"VALID":
            return
        values = [self.array(name) for name in before.input[1:]]
        zeros = all(value is not None for value in values) and not np.any(values[1:])
        # A pooling's own padding is less than any value, and that of a rectified map is 0.
        rectified = self.maker.get(before.input[0])
        if node.op_type == "MaxPool":
            zeros = zeros and rectified is not None and rectified.op_type == "Relu"
        if zeros and b"mode" not in before.attribute:
            pads = np.array(found.get("pads", [0] * 4)) + values[0][[2, 3, 6, 7]]
            self.pad(node, pads)
            node.input[0] = before.input[0]

    def write_out(self, softmax: Any) -> None:
        """A softmax over channels before pixels as its parts: 10 times faster in ONNX Runtime."""
        (logits,), (result,) = softmax.input, softmax.output
        axes = self.arrays.from_array(np.array([1]), f"{result}/axes")
        self.graph.initializer.append(axes)
        names = {part: f"{result}/{part}" for part in ("max", "moved", "exp", "sum", "log")}
        make = self.helper.make_node
        parts = [
            make("ReduceMax", [logits, axes.name], [names["max"]]),
            make("Sub", [logits, names["max"]], [names["moved"]]),
            make("Exp", [names["moved"]], [names["exp"]]),
            make("ReduceSum", [names["exp"], axes.name], [names["sum"]]),
        ]
        if softmax.op_type == "Softmax":
            parts += [make("Div", [names["exp"], names["sum"]], [result])]
        else:
            parts += [make("Log", [names["sum"]], [names["log"]])]
            parts += [make("Sub", [names["moved"], names["log"]], [result])]
        place = list(self.graph.node).index(softmax)
        self.graph.node.remove(softmax)
        for index, part in enumerate(parts):
            self.graph.node.insert(place + index, part)

    def array(self, name: str) -> np.ndarray | None:
        known = name in self.constants
        return self.arrays.to_array(self.constants[name]) if known else None

    def remove_unused(self) -> None:
        used = {name for node in self.graph.node for name in node.input}
        used |= {output.name for output in self.graph.output}
        for node in list(self.graph.node):
            if used.isdisjoint(node.output):
                self.graph.node.remove(node)
        used = {name for node in self.graph.node for name in node.input}
        for constant in list(self.graph.initializer):
            if constant.name not in used:
                self.graph.initializer.remove(constant)
