"""What a TensorFlow checkpoint's index declares, read before TensorFlow opens it.

TensorFlow aborts the whole process at an index whose shapes are negative, too large or of too many
axes, and allocates what is declared before it looks at the data.

The format is LevelDB's table: blocks of keys and values, a block that lists the blocks, a footer.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from pathlib import Path

import tensorflow as tf
from tensorflow.core.protobuf.tensor_bundle_pb2 import BundleEntryProto

from keras_deeplab.weights.errors import WeightsError, reading

_MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
_FOOTER = 48
_MAX_RANK = 254  # of tf.TensorShape
_STRING = 24  # bytes of TensorFlow's own record of each


def declared_bytes(index: Path) -> int:
    """The bytes that all variables of a checkpoint take in memory, by their declared shapes."""
    with reading(index):
        table = index.read_bytes()
    try:
        if not table.endswith(_MAGIC):
            raise ValueError("it does not end as an index does")
        footer = io.BytesIO(table[-_FOOTER:])
        _block(table, footer)  # of metadata
        return sum(
            _bytes_of(value)
            for _, handle in _entries(_block(table, footer))
            for key, value in _entries(_block(table, io.BytesIO(handle)))
            if key  # the empty key has the header
        )
    except Exception as error:  # protobuf has its own
        raise WeightsError(index, f"it is damaged or incomplete: {error}") from error


def _bytes_of(value: bytes) -> int:
    entry = BundleEntryProto.FromString(value)
    shape = [dimension.size for dimension in entry.shape.dim]
    if min(shape, default=0) < 0 or len(shape) > _MAX_RANK or entry.shape.unknown_rank:
        raise ValueError(f"a variable is declared with the shape {shape[:8]}")
    if math.prod(max(size, 1) for size in shape) > 1 << 48:
        raise ValueError(f"a variable of the shape {shape[:8]} is larger than any memory")
    dtype = tf.as_dtype(entry.dtype)
    return math.prod(shape) * (_STRING if dtype == tf.string else dtype.size)


def _block(table: bytes, handle: io.BytesIO) -> bytes:
    """The entries of a block, whose start and length a handle has."""
    start, length = _number(handle), _number(handle)
    if start + length >= len(table) or table[start + length]:
        raise ValueError("a block lies outside or is compressed")
    block = table[start : start + length]
    restarts = int.from_bytes(block[-4:], "little")
    return block[: max(0, length - 4 * (restarts + 1))]


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The keys and values of a block; a key shares its begin with the one before it."""
    file, key = io.BytesIO(block), b""
    while file.tell() < len(block):
        shared, rest, size = _number(file), _number(file), _number(file)
        if shared > len(key) or file.tell() + rest + size > len(block):
            raise ValueError("an entry lies outside its block")
        key = key[:shared] + file.read(rest)
        yield key, file.read(size)


def _number(file: io.BytesIO) -> int:
    """A number of seven bits a byte, the lowest first."""
    number = 0
    for shift in range(0, 64, 7):
        (byte,) = file.read(1)
        number |= (byte & 127) << shift
        if byte < 128:
            return number
    raise ValueError("a number is too long")
