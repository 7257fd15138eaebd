"""Reads the tensors of a `.safetensors` file."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def read(path: Path) -> dict[str, np.ndarray]:
    """Reads all tensors of a file, bfloat16 as the `ml_dtypes` type of TensorFlow.

    The package safetensors itself checks that the declared shapes and offsets are those of the
    file, without gaps or overlaps.
    """
    try:
        from safetensors.numpy import load_file
    except ImportError as error:
        raise ImportError(
            f"{path} is a safetensors file, and reading it needs the package safetensors: "
            "pip install keras_deeplab[safetensors]"
        ) from error
    return load_file(path)
