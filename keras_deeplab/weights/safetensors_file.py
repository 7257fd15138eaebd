"""Reads the tensors of a `.safetensors` file."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from keras_deeplab.weights.errors import WeightsError, reading

_LENGTH = struct.Struct("<Q")


def is_safetensors_file(path: Path) -> bool:
    """Whether a file begins as safetensors: the length of a header that fits in it, then JSON.

    Args:
        path: Any path; one that is no file is no safetensors file.
    """
    if not path.is_file():
        return False
    with path.open("rb") as file:
        begin = file.read(_LENGTH.size + 1)
    if len(begin) <= _LENGTH.size or begin[-1:] != b"{":
        return False
    (length,) = _LENGTH.unpack_from(begin)
    return _LENGTH.size + length <= path.stat().st_size


def read(path: Path) -> dict[str, np.ndarray]:
    """Reads all tensors of a safetensors file.

    bfloat16 comes as the `ml_dtypes` type that TensorFlow uses too. The package safetensors itself
    checks that the declared shapes and offsets are those of the file, without gaps or overlaps.

    Args:
        path: The file.

    Returns:
        An array for each name, independent of the file.

    Raises:
        ImportError: The package safetensors is not installed.
        WeightsError: The file is missing, damaged or cut, holds no tensors, or holds a type that
            NumPy has not.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError as error:
        raise ImportError(
            f"{path} is a safetensors file, and reading it needs the package safetensors: "
            "pip install keras_deeplab[safetensors]"
        ) from error
    with reading(path):
        try:
            arrays = load_file(path)
        except (SafetensorError, ValueError) as error:  # NumPy's, at a shape such as (2**62, 0)
            raise WeightsError(path, f"damaged or cut safetensors file ({error})") from error
        except (AttributeError, KeyError, TypeError) as error:
            # How the package fails at 8-bit and 4-bit floats, which NumPy has not.
            reason = f"holds a tensor of a type that NumPy has not ({error})"
            raise WeightsError(path, reason) from error
    if not arrays:
        raise WeightsError(path, "holds no tensors")
    return arrays
