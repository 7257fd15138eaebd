"""LiteRT files (.tflite), float and 8-bit, by the names of the TF1 networks they were made from."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from keras_deeplab.weights.checkpoint import Checkpoint
from keras_deeplab.weights.errors import WeightsError
from keras_deeplab.weights.layouts import TF1

_IDENTIFIER = b"TFL3"
# The end of a kernel's name behind its layer's; converters fold batch norms into it.
_KERNEL = re.compile(
    r"^(.+)/(weights|depthwise_weights|Conv2D|depthwise)(_Fold|_quant)?(/FakeQuant\w*)?$"
)


class _Operator(NamedTuple):
    kind: str
    inputs: list[int]
    options: Any


def is_tflite_file(path: Path) -> bool:
    """Tells it from the flatbuffer's identifier."""
    with path.open("rb") as file:
        return file.read(8)[4:] == _IDENTIFIER


def read(path: Path) -> Checkpoint:
    """Reads the kernels and biases of all convolutions, de-quantized, in TensorFlow 1's names.

    Batch norms are folded into the convolutions of such a file.

    Raises:
        WeightsError: If the file is damaged or a weight's name or type is not understood.
    """
    schema = _schema()
    try:
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(path.read_bytes(), 0))
        return _Graph(path, schema, model).checkpoint()
    except WeightsError:
        raise
    except Exception as error:  # whatever a damaged flatbuffer leads to
        raise WeightsError(path, f"it is a damaged LiteRT file: {error}") from error


def _schema() -> ModuleType:
    """The classes of the file format, from TensorFlow or from LiteRT's own package."""
    try:
        from tensorflow.lite.python import schema_py_generated
    except ImportError:  # TensorFlow is about to leave LiteRT to that package
        try:
            from ai_edge_litert import schema_py_generated
        except ImportError as error:
            raise ImportError(
                "reading .tflite files needs LiteRT: pip install keras_deeplab[litert]"
            ) from error
    return schema_py_generated


class _Graph:
    """The graph of a file, as far as its weights go."""

    def __init__(self, path: Path, schema: ModuleType, model: Any) -> None:
        self.path = path
        self.schema = schema
        self.model = model
        if not model.subgraphs:
            raise WeightsError(path, "it is a damaged LiteRT file: it holds no graph")
        self.tensors = model.subgraphs[0].tensors

    def checkpoint(self) -> Checkpoint:
        arrays: dict[str, np.ndarray] = {}
        stride, rates, finest = 1, [], 1
        for operator in self._operators():
            if operator.kind not in ("CONV_2D", "DEPTHWISE_CONV_2D"):
                continue
            self._take(operator, arrays)
            if operator.options.strideH != operator.options.strideW:
                raise WeightsError(self.path, "a convolution's strides differ in height and width")
            finest *= operator.options.strideH
            rates.append(operator.options.dilationHFactor)
            stride = max(stride, finest)
        if not arrays:
            raise WeightsError(self.path, "it holds no convolutions")
        return Checkpoint(str(self.path), arrays, TF1, folded=True, output_stride=stride)

    def _operators(self) -> list[_Operator]:
        names = {
            number: name
            for name, number in vars(self.schema.BuiltinOperator).items()
            if isinstance(number, int)
        }
        operators = []
        for operator in self.model.subgraphs[0].operators:
            code = self.model.operatorCodes[operator.opcodeIndex]
            # Old files keep the number in a field that later became too small for it.
            kind = names[max(code.builtinCode, code.deprecatedBuiltinCode)]
            operators.append(_Operator(kind, list(operator.inputs), operator.builtinOptions))
        return operators

    def _take(self, operator: _Operator, arrays: dict[str, np.ndarray]) -> None:
        """Adds a convolution's kernel and bias, unless its kernel is computed."""
        kernel, *bias = operator.inputs[1:]
        name = self._name(kernel)
        match = _KERNEL.match(name)
        if match is None:
            raise WeightsError(
                self.path,
                f"the kernel {name!r} is not named as a TensorFlow 1 network names it; "
                "only LiteRT files of such networks are read",
            )
        scope = match[1]
        value = self._values(kernel)
        if operator.kind == "DEPTHWISE_CONV_2D":  # (1, h, w, channels)
            arrays[f"{scope}/depthwise_weights"] = value.transpose(1, 2, 3, 0)
        else:  # (out, h, w, in)
            arrays[f"{scope}/weights"] = value.transpose(1, 2, 3, 0)
        if bias and bias[0] >= 0:
            arrays[f"{scope}/biases"] = self._values(bias[0])

    def _name(self, index: int) -> str:
        # Converters join the names of all that was fused, the kernel's own first.
        return self.tensors[index].name.decode().split(";")[0]

    def _values(self, index: int) -> np.ndarray:
        """The constant's values as float32, de-quantized per tensor or per channel."""
        tensor = self.tensors[index]
        types = self.schema.TensorType
        dtypes = {
            types.FLOAT32: np.float32,
            types.FLOAT16: np.float16,
            types.UINT8: np.uint8,
            types.INT8: np.int8,
            types.INT32: np.int32,
            types.INT64: np.int64,
        }
        data = self.model.buffers[tensor.buffer].data
        if tensor.type not in dtypes or data is None:
            raise WeightsError(self.path, f"{self._name(index)} is no constant of a known type")
        raw = np.frombuffer(np.asarray(data, np.uint8).tobytes(), dtypes[tensor.type])
        values = raw.reshape(tuple(tensor.shape))
        quantization = tensor.quantization
        if values.dtype.kind == "f":
            return values.astype(np.float32)
        if quantization is None or quantization.scale is None:
            raise WeightsError(self.path, f"{self._name(index)} holds integers without a scale")
        shape = [1] * values.ndim
        if len(quantization.scale) > 1:
            shape[quantization.quantizedDimension] = -1
        scale = np.asarray(quantization.scale, np.float64).reshape(shape)
        zero = 0 if quantization.zeroPoint is None else quantization.zeroPoint
        zero = np.asarray(zero, np.int64).reshape(shape if np.size(zero) > 1 else [1] * values.ndim)
        return ((values.astype(np.int64) - zero) * scale).astype(np.float32)
