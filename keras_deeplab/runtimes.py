"""Exported models, each run by its own runtime: TensorFlow, LiteRT or ONNX Runtime."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import function_pb2
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.framework import op_def_registry

from keras_deeplab._version import __version__
from keras_deeplab.data import DatasetInfo, voc_colors
from keras_deeplab.extras import require
from keras_deeplab.files import read_json_object
from keras_deeplab.frozen import reachable
from keras_deeplab.labels import label_dtype
from keras_deeplab.validation import error, integer, is_integer, positive
from keras_deeplab.weights.readers.tflite import file_schema

MAX_CLASSES = 65536  # of a label map of 16 bits
OUTPUTS = ("labels", "probabilities", "logits")
METADATA = "keras_deeplab"  # the name of the metadata inside a file
METADATA_FILE = Path("assets.extra", "keras_deeplab.json")  # of a SavedModel
SERVING_DEFAULT = "serving_default"
BYTES_PER_PIXEL = 1000  # of a prediction with a network whose maps are not known
COLORS = {1: "grey", 3: "RGB"}  # by the number of channels
NO_METADATA = "it has no metadata of keras_deeplab"
PIXELS = "{} in 0..255, uint8 (batch, height, width, channels)"

Outputs = dict[str, np.ndarray]
Run = Callable[[np.ndarray], Outputs]

# Operations of a SavedModel that are run although they call functions or have effects, and those
# that are not although they are declared to do neither: they read files, call what is outside the
# graph, or keep state.
_CONTROL = {"Assert", "If", "While", "PartitionedCall", "StatefulPartitionedCall"}
_CONTROL |= {"StatelessIf", "StatelessWhile", "StatelessCase"}
_OUTSIDE = re.compile(
    "File|Immutable|Py|Debug|Vocab|Dataset|Reader|Custom|Proto|Abort|Remote"
    "|Copy|Mlir|Xla|TPU|DTensor|Queue|Lookup|Table|Barrier"
)


@dataclass(frozen=True)
class Metadata:
    """What an exported file says about itself.

    Args:
        num_classes: Number of classes.
        image_shape: Height, width (None: any) and channels of the images.
        outputs: Names of the outputs, of `OUTPUTS`.
        info: Names and colours of the classes, if known.
        image_scale: Factor by which the network inside resizes the images (`Recipe.image_scale`).
        bytes_per_pixel: About the memory of a prediction for each pixel of an image.
    """

    num_classes: int
    image_shape: tuple[int | None, int | None, int]
    outputs: tuple[str, ...]
    info: DatasetInfo | None = None
    image_scale: float = 1.0
    bytes_per_pixel: int = BYTES_PER_PIXEL

    def to_json(self) -> str:
        """Returns the string that is stored in the file."""
        return json.dumps(
            {
                "keras_deeplab": __version__,
                "images": PIXELS.format(COLORS.get(self.image_shape[-1], "values")),
                "image_shape": self.image_shape,
                "outputs": self.outputs,
                "num_classes": self.num_classes,
                "image_scale": self.image_scale,
                "bytes_per_pixel": self.bytes_per_pixel,
                **(self.info.to_dict() if self.info else {}),
            }
        )

    @classmethod
    def from_dict(cls, content: Any) -> Metadata:
        """Returns the metadata of a file, or raises a ValueError."""
        if not isinstance(content, dict):
            raise error("metadata", "a JSON object", content)
        num_classes, shape = content.get("num_classes"), content.get("image_shape")
        outputs = content.get("outputs")
        if not is_integer(num_classes, 2) or num_classes > MAX_CLASSES:
            raise error("num_classes", f"an integer from 2 to {MAX_CLASSES}", num_classes)
        sides = isinstance(shape, list) and len(shape) == 3 and is_integer(shape[2])
        if not sides or not all(side is None or is_integer(side) for side in shape):
            raise error("image_shape", "a height, a width and a number of channels", shape)
        if not isinstance(outputs, list) or not outputs or not all(o in OUTPUTS for o in outputs):
            raise error("outputs", f"a list of {', '.join(OUTPUTS)}", outputs)
        info = DatasetInfo.from_dict(content) if "classes" in content else None
        if info and info.num_classes != num_classes:
            raise error("classes", f"{num_classes} names", info.classes)
        scale = positive("image_scale", content.get("image_scale", 1.0))
        memory = integer("bytes_per_pixel", content.get("bytes_per_pixel", BYTES_PER_PIXEL))
        return cls(num_classes, tuple(shape), tuple(outputs), info, scale, memory)


class ExportedModel:
    """An exported model: a function from images to labels and probabilities.

    `open_exported` makes it from a file.
    """

    def __init__(self, path: Path, metadata: Metadata, run: Run) -> None:
        self.path = path
        self.metadata = metadata
        self._run = run
        # A file of one size has a batch of one.
        self._by_image = path.is_file() and None not in metadata.image_shape[:2]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.metadata.num_classes

    @property
    def spec(self) -> tuple[tf.TensorSpec, int]:
        """The spec of the images and the number of classes."""
        return tf.TensorSpec((None, *self.metadata.image_shape), tf.uint8), self.num_classes

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; their numbers where the file has none."""
        info = self.metadata.info
        return info.classes if info else tuple(map(str, range(self.num_classes)))

    @property
    def colors(self) -> tuple[tuple[int, int, int], ...]:
        """Colours of the classes; PASCAL VOC's where the file has none."""
        info = self.metadata.info
        return info.colors if info else voc_colors(self.num_classes)

    @property
    def value_range(self) -> tuple[float, float] | None:
        """The sample values of image files that become 0 and 255, where they are not the usual."""
        return self.metadata.info and self.metadata.info.value_range

    def __call__(self, images: np.ndarray) -> Outputs:
        """Returns the outputs for uint8 images `(batch, height, width, channels)`, by name.

        Raises:
            ValueError: If the images have another shape or dtype, or the runtime reports an error.
        """
        images = np.asarray(images)
        shape = tf.TensorShape([None, *self.metadata.image_shape])
        if (
            images.dtype != np.uint8
            or not images.size
            or not shape.is_compatible_with(images.shape)
        ):
            received = f"{images.dtype} {images.shape}"
            raise error("images", f"uint8 of the shape {tuple(shape)}, not empty", received)
        if len(images) > 1 and self._by_image:
            found = [self(image) for image in np.split(images, len(images))]
            return {name: np.concatenate([each[name] for each in found]) for name in found[0]}
        try:
            outputs = self._run(images)
        except MemoryError:
            raise
        except tf.errors.ResourceExhaustedError as fault:
            raise MemoryError(f"{self.path}: {fault.message}") from fault
        except Exception as fault:  # each runtime has its own
            raise ValueError(f"{self.path} failed: {fault}") from fault
        for name in self.metadata.outputs:
            expected = images.shape[:3] + (() if name == "labels" else (self.num_classes,))
            found = np.shape(outputs.get(name))
            if found != expected:
                raise ValueError(
                    f"{self.path}: {name} must have the shape {expected}. Received: {found}"
                )
        return {name: outputs[name] for name in self.metadata.outputs}

    def labels(self, pixels: np.ndarray | tf.Tensor) -> np.ndarray:
        """Returns the label maps `(batch, height, width)` of pixels of any dtype, rounded."""
        found = labels_of(self(pixels_as(tf.uint8, pixels).numpy()))
        return found.astype(label_dtype(self.num_classes).as_numpy_dtype, copy=False)

    def check_probabilities(self) -> None:
        """Raises an error if the export returns labels alone."""
        if self.metadata.outputs == ("labels",):
            raise error("model", "an export with probabilities or logits", str(self.path))

    def probabilities(self, pixels: np.ndarray | tf.Tensor) -> np.ndarray:
        """Returns the probabilities `(batch, height, width, num_classes)`, as `labels` does."""
        self.check_probabilities()
        outputs = self(pixels_as(tf.uint8, pixels).numpy())
        if "probabilities" in outputs:
            return outputs["probabilities"]
        return tf.nn.softmax(outputs["logits"]).numpy()

    @property
    def bytes_per_pixel(self) -> int:
        """About the memory of a prediction; without probabilities no windows can be blended."""
        return 1 if self.metadata.outputs == ("labels",) else self.metadata.bytes_per_pixel


def pixels_as(dtype: tf.DType, pixels: np.ndarray | tf.Tensor) -> tf.Tensor:
    """Returns pixels in a dtype: for integers rounded and clipped, as a cast alone does not."""
    if dtype.is_integer:
        return tf.saturate_cast(tf.round(pixels), dtype)
    return tf.cast(pixels, dtype)


def labels_of(outputs: Outputs) -> np.ndarray:
    """Returns the label maps among the outputs of a model, or those of the largest scores."""
    return outputs["labels"] if "labels" in outputs else next(iter(outputs.values())).argmax(-1)


def open_exported(path: str | os.PathLike) -> ExportedModel:
    """Opens an exported model: a SavedModel's folder, a `.tflite` or an `.onnx` file.

    Graphs that read files or call other code are refused, and so are files with tensors in other
    files. The runtimes parse files in native code: run those of strangers in a process of its own.

    Args:
        path: What `keras_deeplab.export` wrote.

    Returns:
        The model; its call returns outputs of uint8 images `(batch, height, width, channels)`.

    Raises:
        ValueError: If it is not a valid export of this package.
        ImportError: If the runtime of the format is not installed.

    Example:

    >>> exported = keras_deeplab.runtimes.open_exported("saved_model")
    >>> exported.classes
    ('0', '1')
    """
    path = Path(os.path.expanduser(path))
    if not is_exported(path):
        raise error("path", "a SavedModel folder, a .tflite or an .onnx file", os.fspath(path))
    opened = _saved_model
    if path.is_file():
        opened = {".tflite": _litert, ".onnx": _onnx}[path.suffix.lower()]
    try:
        content, run = opened(path)
        return ExportedModel(path, Metadata.from_dict(content), run)
    except (ImportError, OSError, MemoryError):
        raise
    except Exception as fault:  # each runtime has its own
        raise ValueError(f"{path} is not an export of keras_deeplab: {fault}") from fault


def is_exported(path: Path) -> bool:
    """Whether a path looks like an exported model."""
    is_file = path.suffix.lower() in (".tflite", ".onnx") and path.is_file()
    return is_file or (path / "saved_model.pb").is_file()


def _saved_model(path: Path) -> tuple[Any, Run]:
    if not (path / METADATA_FILE).is_file():
        raise ValueError(NO_METADATA)
    return read_json_object(path / METADATA_FILE), signatures(path)[SERVING_DEFAULT]


def signatures(path: Path) -> dict[str, Callable[[Any], Outputs]]:
    """Returns the functions of a SavedModel, each of one input.

    Nothing else of it is run, not even the restoring of variables: exports have none.
    """
    content = (path / "saved_model.pb").read_bytes()
    meta = saved_model_pb2.SavedModel.FromString(content).meta_graphs[0]
    # That of the loader has no inputs.
    wanted = {name: found for name, found in meta.signature_def.items() if found.inputs}
    ends = [end for found in wanted.values() for end in (found.inputs, found.outputs)]
    tensors = [tensor.name for end in ends for tensor in end.values()]
    graph_def = reachable(meta.graph_def, tensors)
    called = _called(graph_def)
    # Without the other functions, and the gradients, nothing can be called that is not checked.
    graph_def.library.CopyFrom(function_pb2.FunctionDefLibrary(function=called))
    nodes = [*graph_def.node, *(node for each in called for node in each.node_def)]
    # TensorFlow runs the operation of a name that no function has, as a branch of an If.
    names = {name for node in nodes for name in (node.op, *_function_names(node.attr))}
    operations = names - {each.signature.name for each in called}
    if refused := sorted(filter(_is_outside, operations)):
        raise ValueError(f"it has operations that an export has not: {', '.join(refused)}")
    with tf.Graph().as_default() as graph:  # the functions of this process may have the same names
        tf.graph_util.import_graph_def(graph_def, name="")
    session = tf.compat.v1.Session(graph=graph)

    def function(signature: Any) -> Callable[[Any], Outputs]:
        (feed,) = [tensor.name for tensor in signature.inputs.values()]
        fetches = {name: tensor.name for name, tensor in signature.outputs.items()}
        return lambda value: session.run(fetches, {feed: value})

    return {name: function(found) for name, found in wanted.items()}


def _called(graph: tf.compat.v1.GraphDef) -> list[Any]:
    """The functions of a graph that it calls, also from each other."""
    functions = {each.signature.name: each for each in graph.library.function}
    found, bodies = [], [graph.node]
    while bodies:
        for node in bodies.pop():
            names = {node.op, *_function_names(node.attr)}
            new = [functions.pop(name) for name in names & functions.keys()]
            found += new
            bodies += [each.node_def for each in new]
    return found


def _function_names(attributes: Mapping[str, Any]) -> Iterator[str]:
    """The functions that attributes name; one may be given another to call."""
    for value in attributes.values():
        for function in [value.func] if value.HasField("func") else value.list.func:
            yield function.name
            yield from _function_names(function.attr)


def _is_outside(operation: str) -> bool:
    definition = op_def_registry.get(operation)
    if definition is None or _OUTSIDE.search(operation):
        return True
    if operation in _CONTROL:
        return False
    calls = any("func" in attribute.type for attribute in definition.attr)
    return calls or definition.is_stateful


def _litert(path: Path) -> tuple[Any, Run]:
    require("running a .tflite file", "litert", "ai_edge_litert")
    from ai_edge_litert.interpreter import Interpreter

    content = path.read_bytes()
    model = file_schema().Model.GetRootAsModel(content, 0)
    entries = [model.Metadata(index) for index in range(model.MetadataLength())]
    stored = [m for m in entries if m.Name() == METADATA.encode()]
    if not stored:
        raise ValueError(NO_METADATA)
    text = model.Buffers(stored[0].Buffer()).DataAsNumpy().tobytes()
    interpreter = Interpreter(model_content=content, num_threads=os.cpu_count())
    runner = interpreter.get_signature_runner(SERVING_DEFAULT)
    lock = threading.Lock()  # threads would overwrite each other's tensors

    def run(images: np.ndarray) -> Outputs:
        with lock:
            return runner(images=images)

    return json.loads(text), run


def _onnx(path: Path) -> tuple[Any, Run]:
    require("running an .onnx file", "onnx", "onnx", "onnxruntime")
    import onnx
    import onnxruntime
    from onnx.external_data_helper import uses_external_data

    content = path.read_bytes()
    model = onnx.load_model_from_string(content)
    if any(map(uses_external_data, _tensors(model.graph))) or model.functions:
        raise ValueError("it has tensors in other files, or functions")
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    text = session.get_modelmeta().custom_metadata_map.get(METADATA)
    if text is None:
        raise ValueError(NO_METADATA)
    names = [output.name for output in session.get_outputs()]

    def run(images: np.ndarray) -> Outputs:
        return dict(zip(names, session.run(names, {"images": images}), strict=True))

    return json.loads(text), run


def _tensors(graph: Any) -> Iterable[Any]:
    """All constants of an ONNX graph and of the graphs inside it."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            sparse = [attribute.sparse_tensor, *attribute.sparse_tensors]
            yield from (attribute.t, *attribute.tensors)
            yield from (tensor for s in sparse for tensor in (s.values, s.indices))
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)
