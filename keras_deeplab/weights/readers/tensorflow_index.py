"""What a TensorFlow checkpoint's index declares, read before TensorFlow opens it.

TensorFlow aborts the whole process at an index whose shapes are negative, too large or of too many
axes, and allocates what is declared before it looks at the data.

The format is LevelDB's table: blocks of keys and values, a block that lists the blocks, a footer.
"""

from __future__ import annotations

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
    """The bytes that all variables of a checkpoint take in memory, by their declared shapes.

    Raises:
        WeightsError: If the index cannot be read, is damaged, or declares what cannot be.
    """
    with reading(index):
        table = index.read_bytes()
    try:
        if not table.endswith(_MAGIC):
            raise ValueError("it does not end as an index does")
        footer = len(table) - _FOOTER
        _, position = _handle(table, footer)
        (start, length), _ = _handle(table, position)
        total = 0
        for _, handle in _entries(table, start, length):
            for key, value in _entries(table, *_handle(handle, 0)[0]):
                if key:  # the empty key has the header
                    total += _bytes_of(value)
        return total
    except (ValueError, IndexError, TypeError) as error:
        raise WeightsError(index, f"it is damaged or incomplete: {error}") from error


def _bytes_of(value: bytes) -> int:
    try:
        entry = BundleEntryProto.FromString(value)
    except Exception as error:  # protobuf's own
        raise ValueError(error) from error
    shape = [dimension.size for dimension in entry.shape.dim]
    if min(shape, default=0) < 0 or len(shape) > _MAX_RANK or entry.shape.unknown_rank:
        raise ValueError(f"a variable is declared with the shape {shape[:8]}")
    if math.prod(max(size, 1) for size in shape) > 1 << 48:
        raise ValueError(f"a variable of the shape {shape[:8]} is larger than any memory")
    dtype = tf.as_dtype(entry.dtype)
    return math.prod(shape) * (_STRING if dtype == tf.string else dtype.size)


def _entries(table: bytes, start: int, length: int) -> Iterator[tuple[bytes, bytes]]:
    """The keys and values of a block; a key shares its begin with the one before it."""
    if start + length >= len(table) or table[start + length]:
        raise ValueError("a block lies outside or is compressed")
    restarts = int.from_bytes(table[start + length - 4 : start + length], "little")
    position, end, key = start, start + length - 4 * (restarts + 1), b""
    while position < end:
        shared, position = _number(table, position)
        rest, position = _number(table, position)
        size, position = _number(table, position)
        if shared > len(key) or position + rest + size > end:
            raise ValueError("an entry lies outside its block")
        key = key[:shared] + table[position : position + rest]
        yield key, table[position + rest : position + rest + size]
        position += rest + size


def _handle(table: bytes, position: int) -> tuple[tuple[int, int], int]:
    """Start and length of a block, and where they end."""
    start, position = _number(table, position)
    length, position = _number(table, position)
    return (start, length), position


def _number(table: bytes, position: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where it ends."""
    number = 0
    for shift in range(0, 64, 7):
        byte = table[position]
        position += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, position
    raise ValueError("a number is too long")
