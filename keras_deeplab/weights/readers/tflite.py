"""LiteRT files (.tflite), float and 8-bit, by the names of the TF1 networks they were made from."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from keras_deeplab.extras import require
from keras_deeplab.weights.checkpoint import Checkpoint, may_hold
from keras_deeplab.weights.errors import UnreadableError

_LONGEST_NAME = 10_000  # a converter joins the names of all that it fuses
# The end of a kernel's name behind its layer's; converters fold batch norms into it.
_KERNEL = re.compile(
    r"^(.+)/(weights|depthwise_weights|Conv2D|depthwise)(_Fold|_quant)?(/FakeQuant\w*)?$"
)
_DTYPES = ("FLOAT32", "FLOAT16", "UINT8", "INT8", "INT32", "INT64")


def read(path: Path) -> Checkpoint:
    """Reads the kernels and biases of all convolutions, de-quantized, and the output stride."""
    schema, content = file_schema(), path.read_bytes()
    arrays, stride = _Graph(schema, content).convolutions()
    return Checkpoint(str(path), arrays, folded=True, model_arguments={"output_stride": stride})


def file_schema() -> ModuleType:
    """The classes of the file format, from TensorFlow or from LiteRT's own package."""
    try:
        from tensorflow.lite.python import schema_py_generated
    except ImportError:  # TensorFlow is about to leave LiteRT to that package
        require("reading a .tflite file", "litert", "ai_edge_litert")
        from ai_edge_litert import schema_py_generated
    return schema_py_generated


class _Graph:
    """The graph of a file, as far as its weights go.

    The file is read in place: its tables may share parts, and as a tree of objects a small file
    could take any memory. What is read is counted, each time that it is read.
    """

    def __init__(self, schema: ModuleType, content: bytes) -> None:
        self.schema = schema
        self.size = len(content)
        self.taken = 0  # bytes of constants, names and lists of tensors so far
        self.model = schema.Model.GetRootAsModel(content, 0)
        self.graph = _item(self.model, "Subgraphs", 0)

    def convolutions(self) -> tuple[dict[str, np.ndarray], int]:
        """Kernels and biases by name, and the output stride of the network."""
        arrays: dict[str, np.ndarray] = {}
        strides: dict[int, int] = {}  # of the tensors
        kinds = self.schema.BuiltinOperator
        options_of = {
            kinds.CONV_2D: self.schema.Conv2DOptions,
            kinds.DEPTHWISE_CONV_2D: self.schema.DepthwiseConv2DOptions,
            kinds.MAX_POOL_2D: self.schema.Pool2DOptions,
        }
        for index in range(self.graph.OperatorsLength()):
            operator = self.graph.Operators(index)
            code = _item(self.model, "OperatorCodes", operator.OpcodeIndex())
            # Old files keep the number in a field that later became too small for it.
            kind = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
            inputs = self._tensors(operator, "Inputs")
            stride = max((strides.get(tensor, 1) for tensor in inputs), default=1)
            if kind in options_of:
                table, options = operator.BuiltinOptions(), options_of[kind]()
                options.Init(table.Bytes, table.Pos)
                if options.StrideH() != options.StrideW():
                    raise UnreadableError("its strides differ in height and width")
                stride *= options.StrideH()
            strides |= dict.fromkeys(self._tensors(operator, "Outputs"), stride)
            if kind not in (kinds.CONV_2D, kinds.DEPTHWISE_CONV_2D):
                continue
            kernel = _item(operator, "Inputs", 1)
            scope = self._scope(kernel)
            # Kernels are (out, h, w, in), depthwise ones (1, h, w, channels).
            arrays[f"{scope}/weights"] = self._values(kernel).transpose(1, 2, 3, 0)
            if len(inputs) > 2 and inputs[2] >= 0:
                arrays[f"{scope}/biases"] = self._values(inputs[2])
        if not arrays:
            raise UnreadableError("it holds no convolutions")
        return arrays, max(strides.values())

    def _take(self, size: int) -> None:
        """Counts what is read, and refuses more than the file may hold."""
        self.taken += size
        if not may_hold(self.size, self.taken):
            raise UnreadableError(f"refused: tensors of more than {self.taken} bytes")

    def _tensors(self, operator: Any, vector: str) -> list[int]:
        """The numbers of an operator's inputs or outputs."""
        self._take(4 * getattr(operator, f"{vector}Length")())
        found = getattr(operator, f"{vector}AsNumpy")()  # 0 where there is none
        return found.tolist() if isinstance(found, np.ndarray) else []

    def _scope(self, kernel: int) -> str:
        """The name of the layer that has a kernel."""
        name = _item(self.graph, "Tensors", kernel).Name() or b""
        self._take(len(name))
        # Converters join the names of all that was fused, the kernel's own first.
        name = name[:_LONGEST_NAME].decode().split(";")[0]
        match = _KERNEL.match(name)
        if match is None:
            raise UnreadableError(f"the kernel {name[:200]!r} is not of a TensorFlow 1 network")
        return match[1]

    def _values(self, index: int) -> np.ndarray:
        """The constant's values as float32, de-quantized per tensor or per channel."""
        tensor = _item(self.graph, "Tensors", index)
        types = {getattr(self.schema.TensorType, name): name.lower() for name in _DTYPES}
        buffer = _item(self.model, "Buffers", tensor.Buffer())
        if tensor.Type() not in types or buffer.DataIsNone():
            raise UnreadableError(f"tensor {index} is not a constant of a known type")
        raw = buffer.DataAsNumpy().view(types[tensor.Type()])
        self._take(raw.nbytes)
        values = raw.reshape(() if tensor.ShapeIsNone() else tuple(tensor.ShapeAsNumpy()))
        if values.dtype.kind == "f":
            return values.astype(np.float32)
        quantization = tensor.Quantization()
        if quantization is None or quantization.ScaleIsNone():
            raise UnreadableError(f"tensor {index} holds integers without a scale")
        scale = quantization.ScaleAsNumpy().astype(np.float64)
        zero = np.zeros(1) if quantization.ZeroPointIsNone() else quantization.ZeroPointAsNumpy()
        shape = [1] * values.ndim
        if scale.size > 1:
            shape[quantization.QuantizedDimension()] = -1
        zero = zero.astype(np.int64).reshape(shape)
        return ((values - zero) * scale.reshape(shape)).astype(np.float32)


def _item(table: Any, vector: str, index: int) -> Any:
    """An item of a table's vector; the classes themselves read past its end."""
    if not 0 <= index < getattr(table, f"{vector}Length")():
        raise IndexError(f"{vector} has no item {index}")
    return getattr(table, vector)(index)
