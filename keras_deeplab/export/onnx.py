"""ONNX files (.onnx), for ONNX Runtime, OpenVINO and other runtimes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_deeplab.data import DatasetInfo, Source
from keras_deeplab.export.comparison import Limits
from keras_deeplab.export.definition import DEFAULT_OUTPUTS, Definition
from keras_deeplab.export.onnx_graph import onnx_graph
from keras_deeplab.export.single_file import PRECISIONS, write_file
from keras_deeplab.extras import require
from keras_deeplab.runtimes import METADATA
from keras_deeplab.validation import error

LARGEST = 2**31 - 1  # bytes of a message of Protocol Buffers, which a file is
# Of int8. Scores are computed in float32, whose steps are finer than those of 8 bits.
QUANTIZED = ("Conv", "Add", "Concat", "Relu", "Clip", "MaxPool", "ReduceMean")


def onnx(
    model: keras.Model,
    path: str | os.PathLike,
    overwrite: bool = False,
    *,
    precision: str = "float32",
    outputs: Sequence[str] = DEFAULT_OUTPUTS,
    info: DatasetInfo | None = None,
    image_size: tuple[int, int] | None = None,
    images: Sequence[np.ndarray | str | os.PathLike] | None = None,
    source: Source | None = None,
    limits: Limits | None = None,
) -> Path:
    """Writes a model as an ONNX file of opset 18, and compares it with the model.

    The input `images` is uint8 `(batch, height, width, channels)` in 0..255, of any size that is
    not fixed; the outputs are those of `saved_model`. The file is compared with the model in ONNX
    Runtime, which the extra `onnx` installs, before it is put in place.

    Args:
        model: Segmentation model on pixels in 0..255.
        path: The file, which ends in `.onnx`.
        overwrite: Whether an existing file is replaced.
        precision: `"float32"`, with which a runtime may also compute in bfloat16 or float16;
            `"float16"`, weights of half the size, computed as those of float32; or `"int8"`, 8-bit
            weights and activations, whose ranges are measured on images. OpenVINO 2026.4 computes
            int8 wrongly unless `image_size` is set.
        outputs: Of `"labels"`, `"probabilities"` and `"logits"`; labels alone are the fastest.
        info: Names and colours of the classes, to be stored.
        image_size: `(height, width)` for a file that takes single images of one size, which is
            up to a fifth faster; by default any size.
        images: Images as the model will get them, files or uint8 `(height, width, channels)`: the
            export is compared on them, and in int8 calibrated. By default it is compared on random
            ones of 97x129 and of 71x65 pixels.
        source: Labelled images, on which the mean IoU of model and export are compared; int8 is
            calibrated on some of its training images if `images` are not given.
        limits: Largest deviations; by default those of the precision.

    Returns:
        The path.

    Raises:
        ImportError: If tf2onnx or ONNX Runtime is not installed.
        ValueError: If an argument is out of its range, or the model larger than 2 GB.
        FileExistsError: If something is at `path` that may not be replaced.
        ExportError: If the model cannot be converted or the file deviates by more than the limits.

    Example:

    >>> path = keras_deeplab.export.onnx(model, "model.onnx")
    >>> keras_deeplab.runtimes.open_exported(path)(images)["labels"]
    """
    require("writing an .onnx file", "onnx", "tf2onnx", "onnxruntime")
    definition = Definition(model, precision, PRECISIONS, outputs, info, image_size, single=True)
    size = 4 * model.count_params()
    if size > LARGEST:
        raise error("model", f"of up to {LARGEST} bytes, the limit of an ONNX file", size)
    return write_file(definition, path, ".onnx", overwrite, _write, images, source, limits)


def _write(definition: Definition, images: Iterable[np.ndarray] | None, path: Path) -> None:
    from onnx import helper, load_model, save_model

    graph = onnx_graph(definition.frozen("converter"))
    if definition.precision == "float16":
        _halve(graph)
    if definition.precision == "int8":
        _quantize(graph, images, path)
        graph = load_model(path)
    helper.set_model_props(graph, {METADATA: definition.metadata.to_json()})
    save_model(graph, path)


def _halve(model: Any) -> None:
    """Stores weights in float16; runtimes convert them once when they load the file."""
    from onnx import TensorProto, helper, numpy_helper

    for constant in model.graph.initializer:
        if constant.data_type == TensorProto.FLOAT:
            name, values = constant.name, numpy_helper.to_array(constant)
            half = numpy_helper.from_array(values.astype(np.float16), f"{name}/half")
            constant.CopyFrom(half)
            cast = helper.make_node("Cast", [half.name], [name], to=TensorProto.FLOAT)
            model.graph.node.insert(0, cast)


def _quantize(model: Any, images: Iterable[np.ndarray], path: Path) -> None:
    """Writes a graph with 8-bit weights and activations, of ranges measured on images."""
    from onnxruntime import quantization
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    class Images(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch}

    add_pre_process_metadata(model)  # else a warning of what `onnx_graph` has done
    # Weights in 7 bits: with 8, sums of two products overflow on processors without VNNI, where
    # the labels of a file that was right elsewhere would be wrong.
    quantization.quantize_static(
        model,
        path,
        Images(),
        op_types_to_quantize=list(QUANTIZED),
        per_channel=True,
        reduce_range=True,
    )
