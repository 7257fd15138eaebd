"""What the formats of one file share: from the arguments to a file that has passed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from keras_deeplab.data import Source
from keras_deeplab.export.calibration import compared_images
from keras_deeplab.export.comparison import ExportError, Limits, check_export
from keras_deeplab.export.definition import Definition
from keras_deeplab.export.placing import verified_file
from keras_deeplab.memory import return_free_memory
from keras_deeplab.runtimes import open_exported

PRECISIONS = ("float32", "float16", "int8")


def write_file(
    definition: Definition,
    path: str | os.PathLike,
    suffix: str,
    overwrite: bool,
    write: Callable[[Definition, list[np.ndarray] | None, Path], None],
    images: Sequence[np.ndarray | str | os.PathLike] | None,
    source: Source | None,
    limits: Limits | None,
) -> Path:
    """Converts, compares the file with the model in its own runtime, and puts it in place.

    `write` gets the definition, the images to calibrate on and the path of a temporary file.
    """
    compared = compared_images(definition, images, source)
    with verified_file(path, suffix, overwrite) as temporary:
        try:
            write(definition, compared, temporary)
        except (ImportError, OSError, MemoryError):
            raise
        except Exception as fault:  # each converter has its own
            raise ExportError(f"The model cannot be converted to {suffix}: {fault}") from fault
        return_free_memory()
        try:
            exported = open_exported(temporary)
        except ValueError as fault:
            raise ExportError(str(fault)) from fault
        check_export(exported, definition, limits, compared, source)
        del exported
        return_free_memory()
    return Path(path)
