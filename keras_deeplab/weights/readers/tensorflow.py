"""TensorFlow checkpoints: TF1 by name, TF2 by object, bare or in an archive."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

from keras_deeplab.weights.checkpoint import TF1, Checkpoint, may_hold
from keras_deeplab.weights.errors import WeightsError, reading
from keras_deeplab.weights.readers import tar
from keras_deeplab.weights.readers.tensorflow_index import declared_bytes

_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_AVERAGE = "/ExponentialMovingAverage"
_DATA = r"\.data-\d{5}-of-\d{5}"
# What TF1's optimizers keep beside each variable.
_SLOTS = re.compile(
    r"/(Momentum|RMSProp(_\d)?|Adam(_\d)?|Adagrad|Adadelta(_\d)?|Ftrl(_\d)?|LARS\w*)$"
)


def prefix_of(path: Path, shown: Path | None = None) -> Path | None:
    """The prefix of the checkpoint that a prefix, a file of it or its folder names, or None."""
    if path.is_dir():
        latest = _latest(path)
        if latest is not None:
            return latest
        found = sorted(path.glob("*.index"), key=lambda file: file.stem)
        if len(found) > 1:
            names = ", ".join(file.stem for file in found)
            raise WeightsError(shown or path, f"it holds several checkpoints ({names}): name one")
        return found[0].with_suffix("") if found else None
    prefix = path.with_name(re.sub(rf"(\.index|{_DATA})$", "", path.name))
    return prefix if _index(prefix).is_file() else None


def _index(prefix: Path) -> Path:
    return prefix.with_name(f"{prefix.name}.index")


def _latest(folder: Path) -> Path | None:
    """The checkpoint that the file `checkpoint` names, in the folder itself wherever that was."""
    listing = folder / "checkpoint"
    if not listing.is_file():
        return None
    try:
        state = tf.train.get_checkpoint_state(folder)
    except ValueError as error:
        raise WeightsError(listing, f"it is damaged: {error}") from error
    # A folder that was moved is still named by its old path, and a file may name any other.
    prefix = folder / Path(state.model_checkpoint_path).name if state else folder
    return prefix if _index(prefix).is_file() else None


def read_archive(path: Path, moving_averages: bool = False) -> Checkpoint:
    """Reads the checkpoint inside a .tar.gz, through a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        tar.extract_checkpoint(path, Path(folder))
        prefix = prefix_of(Path(folder), shown=path)
        if prefix is None:
            raise WeightsError(
                path, "it holds no TensorFlow checkpoint (NAME.index and NAME.data-...)"
            )
        return read(prefix, moving_averages, shown=path)


def read(prefix: Path, moving_averages: bool = False, shown: Path | None = None) -> Checkpoint:
    """Reads a checkpoint's model variables; an optimizer's are unexpected keys."""
    shown = shown or prefix
    try:
        size, declared = _size_of_data(prefix), declared_bytes(_index(prefix))
        if not may_hold(size, declared):
            raise WeightsError(
                shown, f"it declares variables of {declared} bytes in data of {size} bytes"
            )
        reader = tf.train.load_checkpoint(str(prefix))
        names = reader.get_variable_to_shape_map()
        if _OBJECT_GRAPH in names:
            return _by_object(reader, shown)
        return _by_name(reader, names, moving_averages, shown)
    except WeightsError as error:
        raise WeightsError(shown, error.reason) from error
    except Exception as error:  # TensorFlow and protobuf have errors of every kind
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(shown, f"it is damaged or incomplete: {reason}") from error


def _size_of_data(prefix: Path) -> int:
    """Bytes in a checkpoint's data files, none of which is a named pipe."""
    size = 0
    for file in prefix.parent.iterdir():
        if re.fullmatch(_DATA, file.name.removeprefix(prefix.name)):
            with reading(file):
                size += file.stat().st_size
    return size


def _by_name(
    reader: tf.train.CheckpointReader, names: Iterable[str], averages: bool, shown: Path
) -> Checkpoint:
    slots = {name for name in names if _SLOTS.search(name)}
    averaged = {name for name in names if name.endswith(_AVERAGE)}
    if averages and not averaged:
        raise WeightsError(shown, "`moving_averages` must be False: it holds none")
    wanted = {name: name for name in names if name not in slots | averaged}
    if averages:
        wanted |= {name.removesuffix(_AVERAGE): name for name in averaged}
    arrays = {name: np.asarray(reader.get_tensor(key)) for name, key in wanted.items()}
    unexpected = slots if averages else slots | averaged
    return Checkpoint(str(shown), arrays, TF1, unexpected_keys=tuple(sorted(unexpected)))


def _by_object(reader: tf.train.CheckpointReader, shown: Path) -> Checkpoint:
    """TF2 names variables by their place in a tree of objects; the tree has the layers' names."""
    graph = TrackableObjectGraph.FromString(reader.get_tensor(_OBJECT_GRAPH))
    of_the_model, todo = {0}, [0]
    while todo:
        for child in graph.nodes[todo.pop()].children:
            is_optimizer = child.local_name in ("optimizer", "_optimizer")
            if child.node_id not in of_the_model and not is_optimizer:
                of_the_model.add(child.node_id)
                todo.append(child.node_id)
    arrays, unexpected = {}, []
    for index, node in enumerate(graph.nodes):
        for attribute in node.attributes:
            name = attribute.full_name.removesuffix(":0")
            if index not in of_the_model:
                unexpected.append(name)
                continue
            value = reader.get_tensor(attribute.checkpoint_key)
            if name in arrays:
                raise WeightsError(shown, f"it holds two variables of the name {name}")
            if isinstance(value, np.ndarray):  # seeds and counters are plain numbers
                arrays[name] = value
    return Checkpoint(str(shown), arrays, unexpected_keys=tuple(sorted(unexpected)))
