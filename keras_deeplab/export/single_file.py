"""What the formats of one file share: from the arguments to a file that has passed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_deeplab.data import Source
from keras_deeplab.data.source import evenly_spaced
from keras_deeplab.export.comparison import ExportError, Limits, check_export, image_batches
from keras_deeplab.export.definition import Definition
from keras_deeplab.export.placing import verified_file
from keras_deeplab.memory import return_free_memory
from keras_deeplab.runtimes import open_exported
from keras_deeplab.validation import error

PRECISIONS = ("float32", "float16", "int8")
CALIBRATION_IMAGES = 32  # of a source; more change the ranges of the activations little


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
    compared = _compared_images(definition, images, source)
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


def _compared_images(
    definition: Definition,
    images: Sequence[np.ndarray | str | os.PathLike] | None,
    source: Source | None,
) -> list[np.ndarray] | None:
    """Returns a user's images as batches; without any, for int8 some of the source, else None."""
    if images is None:
        if definition.precision != "int8":
            return None
        if source is None:
            raise error("images", "calibration images for int8, or `source` given", images)
        images = _training_images(source, definition)
    return image_batches(images, definition.spec.shape, definition.metadata.info)


def calibration_split(source: Source) -> str:
    """Returns the split of the images: train, or else the first."""
    return "train" if "train" in source.splits else source.splits[0]


def _training_images(source: Source, definition: Definition) -> list[np.ndarray]:
    """Some images of a source, at equal distances, in the size of the export where it is fixed."""
    split = calibration_split(source)
    numbers, found = evenly_spaced(len(source.names(split)), CALIBRATION_IMAGES), []
    chosen = source.checked_dataset(split, tf.data.Dataset.from_tensor_slices(numbers))
    for image, _ in chosen.as_numpy_iterator():
        height, width = definition.spec.shape[1:3]
        size = (height or image.shape[0], width or image.shape[1])
        found.append(tf.cast(tf.round(tf.image.resize(image, size)), tf.uint8).numpy())
    return found
