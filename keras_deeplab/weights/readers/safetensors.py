"""Reads the tensors of a `.safetensors` file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from keras_deeplab.weights.errors import WeightsError


def is_safetensors_file(path: Path) -> bool:
    """Whether a file begins with the length of a header that fits in it, and a JSON object."""
    with path.open("rb") as file:
        begin = file.read(9)
    header_end = 8 + int.from_bytes(begin[:8], "little")
    return begin[8:] == b"{" and header_end <= path.stat().st_size


def read(path: Path) -> dict[str, np.ndarray]:
    """Reads all tensors of a file, bfloat16 as the `ml_dtypes` type of TensorFlow.

    The package safetensors itself checks that the declared shapes and offsets are those of the
    file, without gaps or overlaps.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError as error:
        raise ImportError(
            f"{path} is a safetensors file, and reading it needs the package safetensors: "
            "pip install keras_deeplab[safetensors]"
        ) from error
    try:
        arrays = load_file(path)
    except (SafetensorError, ValueError) as error:  # NumPy's, at a shape such as (2**62, 0)
        raise WeightsError(path, f"damaged or cut safetensors file ({error})") from error
    except (AttributeError, KeyError, TypeError) as error:
        # How the package fails at 8-bit and 4-bit floats.
        reason = f"it holds a tensor of a type that NumPy lacks ({error})"
        raise WeightsError(path, reason) from error
    if not arrays:
        raise WeightsError(path, "it holds no tensors")
    return arrays
