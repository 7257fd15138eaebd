"""TensorFlow checkpoints: TF1 by name, TF2 by object, bare or in an archive.

TensorFlow aborts the whole process at an index whose shapes are negative, too large or of too many
axes, and allocates what is declared before it looks at the data. So the index is read here first,
and of strings, which declare their lengths in the data, none but the tree of objects.
"""

from __future__ import annotations

import functools
import io
import math
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf.tensor_bundle_pb2 import BundleEntryProto, BundleHeaderProto
from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

from keras_deeplab.weights.checkpoint import may_hold
from keras_deeplab.weights.errors import NO_AVERAGES, UnreadableError, reading
from keras_deeplab.weights.readers import tar

_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_AVERAGE = "/ExponentialMovingAverage"
_DATA = r"\.data-\d{5}-of-\d{5}"
# What TF1's optimizers keep beside each variable.
_SLOTS = re.compile(
    r"/(Momentum|RMSProp(_\d)?|Adam(_\d)?|Adagrad|Adadelta(_\d)?|Ftrl(_\d)?|LARS\w*)$"
)
_MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")  # the end of an index
_FOOTER = 48
_MAX_RANK = 254  # of tf.TensorShape
_STRING = 24  # bytes of TensorFlow's own record of each
_RESTART = 16  # entries of a block, of which one at least has its whole key
_CHECKSUM = 4  # bytes, between the length of a string and its text


def prefix_of(path: Path) -> Path | None:
    """The prefix of the checkpoint that a prefix, a file of it or its folder names, or None."""
    if not path.is_dir():
        prefix = path.with_name(re.sub(rf"(\.index|{_DATA})$", "", path.name))
        return prefix if _index(prefix).is_file() else None
    listing = path / "checkpoint"
    with reading(listing):
        state = tf.train.get_checkpoint_state(path) if listing.exists() else None
    # A folder that was moved is still named by its old path, and a file may name any other.
    name = Path(state.model_checkpoint_path).name if state else ""
    if name and _index(path / name).is_file():
        return path / name
    found = sorted(path.glob("*.index"), key=lambda file: file.stem)
    if len(found) > 1:
        names = ", ".join(file.stem for file in found)
        raise UnreadableError(f"it holds several checkpoints ({names}): name one")
    return found[0].with_suffix("") if found else None


def _index(prefix: Path) -> Path:
    return prefix.with_name(f"{prefix.name}.index")


def read_archive(path: Path, moving_averages: bool) -> dict[str, np.ndarray]:
    """Reads the checkpoint inside a .tar.gz, through a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        tar.extract_checkpoint(path, Path(folder))
        prefix = prefix_of(Path(folder))
        if prefix is None:
            raise UnreadableError("it holds no checkpoint (NAME.index and NAME.data-...)")
        return read(prefix, moving_averages)


def read(prefix: Path, moving_averages: bool) -> dict[str, np.ndarray]:
    """Reads a checkpoint's model variables, without an optimizer's."""
    index, size = _index(prefix), 0
    for file in prefix.parent.iterdir():
        if re.fullmatch(_DATA, file.name.removeprefix(prefix.name)):
            with reading(file):  # which may be a named pipe
                size += file.stat().st_size
    header, entries = _read_index(index.read_bytes())
    declared = sum(map(_bytes_of, entries.values()))
    if not may_hold(size, declared):
        raise UnreadableError(f"it declares variables of {declared} bytes in data of {size} bytes")
    if (graph := entries.get(_OBJECT_GRAPH.encode())) is not None:
        _check_string(prefix, header, graph)
    reader = tf.train.load_checkpoint(str(prefix))
    dtypes = reader.get_variable_to_dtype_map()
    names = {name for name, dtype in dtypes.items() if dtype.size}  # not strings and objects
    averaged = {name for name in names if name.endswith(_AVERAGE)}
    if moving_averages and (graph is not None or not averaged):
        raise UnreadableError(NO_AVERAGES)
    if graph is not None:
        return _by_object(reader, names)
    wanted = {n: n for n in names if n not in averaged and not _SLOTS.search(n)}
    if moving_averages:
        wanted |= {name.removesuffix(_AVERAGE): name for name in averaged}
    return {name: np.asarray(reader.get_tensor(key)) for name, key in wanted.items()}


def _by_object(reader: tf.train.CheckpointReader, names: set[str]) -> dict[str, np.ndarray]:
    """TF2 names variables by their place in a tree of objects; the tree has the layers' names."""
    graph = TrackableObjectGraph.FromString(reader.get_tensor(_OBJECT_GRAPH))
    of_the_model, todo = {0}, [0]
    while todo:
        for child in graph.nodes[todo.pop()].children:
            is_optimizer = child.local_name in ("optimizer", "_optimizer")
            if child.node_id not in of_the_model and not is_optimizer:
                of_the_model.add(child.node_id)
                todo.append(child.node_id)
    arrays = {}
    tensor = functools.cache(reader.get_tensor)  # the tree may name one many times
    for index in sorted(of_the_model):
        for attribute in graph.nodes[index].attributes:
            if attribute.checkpoint_key not in names:  # such as a table, or a configuration
                continue
            name = attribute.full_name.removesuffix(":0")
            if name in arrays:
                raise UnreadableError(f"it holds two variables of the name {name}")
            value = tensor(attribute.checkpoint_key)
            if isinstance(value, np.ndarray):  # seeds and counters are plain numbers
                arrays[name] = value
    return arrays


def _read_index(table: bytes) -> tuple[BundleHeaderProto, dict[bytes, BundleEntryProto]]:
    """The header of an index, and what it declares of each variable.

    The format is LevelDB's table: blocks of keys and values, a block that lists the blocks, a
    footer.
    """
    if not table.endswith(_MAGIC):
        raise UnreadableError("its index is cut off: it does not end as an index does")
    footer = io.BytesIO(table[-_FOOTER:])
    _block(table, footer)  # of metadata
    found: dict[bytes, bytes] = {}
    read = names = 0
    for _, handle in _entries(_block(table, footer)):
        block = _block(table, io.BytesIO(handle))
        read += len(block)
        for key, value in _entries(block):
            names += len(key)
            if read > len(table) or names > _RESTART * len(table):
                raise UnreadableError("its index has parts that are read more than once")
            if key in found:  # the one that TensorFlow reads could be either
                raise UnreadableError(f"its index has two entries of the name {key!r:.200}")
            found[key] = value
    header = BundleHeaderProto.FromString(found.pop(b"", b""))
    return header, {key: BundleEntryProto.FromString(value) for key, value in found.items()}


def _check_string(prefix: Path, header: BundleHeaderProto, entry: BundleEntryProto) -> None:
    """Refuses a string that declares another length than it has."""
    file_name = f"{prefix.name}.data-{entry.shard_id:05}-of-{header.num_shards:05}"
    with prefix.with_name(file_name).open("rb") as file:
        file.seek(entry.offset)
        size = _number(file) + _CHECKSUM + file.tell() - entry.offset
        end = file.seek(0, os.SEEK_END)
    is_string = entry.dtype == tf.string.as_datatype_enum and not entry.shape.dim
    if not is_string or size != entry.size or entry.offset + size > end:
        raise UnreadableError("its tree of objects is not a string of the length in its index")


def _bytes_of(entry: BundleEntryProto) -> int:
    shape = [dimension.size for dimension in entry.shape.dim]
    elements = math.prod(max(size, 1) for size in shape)
    negative = min(shape, default=0) < 0 or entry.shape.unknown_rank
    if negative or len(shape) > _MAX_RANK or elements > 1 << 48:
        raise UnreadableError(f"a variable is declared with the shape {shape[:8]}")
    dtype = tf.as_dtype(entry.dtype)
    if entry.slices:  # TensorFlow does not compare them with the whole, and reads past their ends
        raise UnreadableError("a variable is stored in slices: save it without a partitioner")
    if dtype != dtype.base_dtype:
        raise UnreadableError(f"a variable must be stored as values. Received: {dtype.name}")
    return math.prod(shape) * (_STRING if dtype == tf.string else dtype.size)


def _block(table: bytes, handle: io.BytesIO) -> bytes:
    """The block whose start and length a handle has."""
    start, length = _number(handle), _number(handle)
    if start + length >= len(table) or table[start + length]:
        raise UnreadableError("its index has a block that lies outside or is compressed")
    return table[start : start + length]


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The keys and values of a block; a key shares its begin with the one before it."""
    end = max(0, len(block) - 4 * (int.from_bytes(block[-4:], "little") + 1))
    # The entries with a whole key, at any of which TensorFlow may begin to read.
    whole = {int.from_bytes(block[at : at + 4], "little") for at in range(end, len(block) - 4, 4)}
    file, key, starts = io.BytesIO(block), b"", {end}
    while file.tell() < end:
        start = file.tell()
        shared, rest, size = _number(file), _number(file), _number(file)
        if shared > len(key) or file.tell() + rest + size > end:
            raise UnreadableError("its index has an entry that lies outside its block")
        if not shared:
            starts.add(start)
        key = key[:shared] + file.read(rest)
        yield key, file.read(size)
    if not whole <= starts:
        raise UnreadableError("its index has an entry that lies inside another")


def _number(file: io.BytesIO) -> int:
    """A number of seven bits a byte, the lowest first."""
    number = 0
    for shift in range(0, 64, 7):
        (byte,) = file.read(1)
        number |= (byte & 127) << shift
        if byte < 128:
            return number
    raise UnreadableError("its index has a number that is too long")
