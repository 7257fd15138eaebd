"""LiteRT files (.tflite), for phones and other small processors."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_deeplab.data import DatasetInfo, Source
from keras_deeplab.export.comparison import Limits
from keras_deeplab.export.definition import DEFAULT_OUTPUTS, Definition
from keras_deeplab.export.single_file import PRECISIONS, write_file
from keras_deeplab.export.tasks_metadata import (
    TASKS_METADATA,
    append_labels,
    fits_segmenter,
    tasks_metadata,
)
from keras_deeplab.extras import require
from keras_deeplab.runtimes import METADATA
from keras_deeplab.weights.readers.tflite import file_schema

logger = logging.getLogger(__name__)


def litert(
    model: keras.Model,
    path: str | os.PathLike,
    overwrite: bool = False,
    *,
    precision: str = "float32",
    outputs: Sequence[str] = DEFAULT_OUTPUTS,
    info: DatasetInfo | None = None,
    image_size: tuple[int, int] | None = None,
    images: Sequence[np.ndarray | str | os.PathLike] | None = None,
    source: Source | None = None,
    limits: Limits | None = None,
) -> Path:
    """Writes a model as a LiteRT file of built-in operations, and compares it with the model.

    The signature `serving_default` takes `images`, uint8 `(batch, height, width, channels)` in
    0..255, of any size that is not fixed, and returns the outputs as those of `saved_model`. The
    file is compared with the model in LiteRT, which the extra `litert` installs, before it is put
    in place.

    Args:
        model: Segmentation model on pixels in 0..255.
        path: The file, which ends in `.tflite`.
        overwrite: Whether an existing file is replaced.
        precision: `"float32"`; `"float16"`, weights of half the size; or `"int8"`, 8-bit weights
            and activations of a quarter of the size, whose ranges are measured on images.
        outputs: Of `"labels"`, `"probabilities"` and `"logits"`; labels alone are the fastest.
            Probabilities alone, with one size of RGB images, are for MediaPipe's ImageSegmenter,
            and the file then holds the names of the classes in its format too.
        info: Names and colours of the classes, to be stored.
        image_size: `(height, width)` for a file that takes single images of one size, as some
            accelerators require; by default any size. LiteRT does not refuse images of another
            size, whose labels are wrong; `open_exported` does.
        images: Images as the model will get them, files or uint8 `(height, width, channels)`: the
            export is compared on them, and in int8 calibrated. By default it is compared on random
            ones of 97x129 and of 71x65 pixels.
        source: Labelled images, on which the mean IoU of model and export are compared; in int8
            some of its training images take the place of `images` that are not given.
        limits: Largest deviations; by default those of the precision.

    Returns:
        The path.

    Raises:
        ImportError: If LiteRT is not installed.
        ValueError: If an argument is out of its range.
        FileExistsError: If something is at `path` that may not be replaced.
        ExportError: If the model cannot be converted or the file deviates by more than the limits.

    Example:

    >>> path = keras_deeplab.export.litert(model, "model.tflite")
    >>> keras_deeplab.runtimes.open_exported(path)(images)["labels"]
    """
    require("writing a .tflite file", "litert", "ai_edge_litert")
    definition = Definition(model, precision, PRECISIONS, outputs, info, image_size, single=True)
    path = write_file(definition, path, ".tflite", overwrite, _write, images, source, limits)
    if not fits_segmenter(definition.metadata):
        logger.info(
            "The file is for LiteRT itself: MediaPipe's ImageSegmenter requires RGB images of one "
            "size (`image_size`) and `probabilities` as the only output."
        )
    return path


def _write(definition: Definition, images: Sequence[np.ndarray] | None, path: Path) -> None:
    # Only here: TensorFlow is about to leave LiteRT to a package of its own.
    from tensorflow.lite.tools import flatbuffer_utils

    frozen = definition.frozen("converter")
    module = tf.Module()
    module.function = frozen.concrete
    converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen.concrete], module)
    if definition.precision != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if definition.precision == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if definition.precision == "int8":
        logger.info("Calibrating on %d images", len(images))
        converter.representative_dataset = lambda: ([batch] for batch in images)
    schema = file_schema()
    parsed = flatbuffer_utils.convert_bytearray_to_object(converter.convert())
    stored = {METADATA: definition.metadata.to_json().encode()}
    for_segmenter = fits_segmenter(definition.metadata)
    if for_segmenter:
        stored[TASKS_METADATA] = tasks_metadata()
    for name, content in stored.items():
        buffer, entry = schema.BufferT(), schema.MetadataT()
        buffer.data = np.frombuffer(content, np.uint8)
        entry.name, entry.buffer = name, len(parsed.buffers)
        parsed.buffers.append(buffer)
        parsed.metadata.append(entry)
    path.write_bytes(flatbuffer_utils.convert_object_to_bytearray(parsed))
    if for_segmenter:
        append_labels(path, definition.metadata)
