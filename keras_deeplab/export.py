"""SavedModels that take photographs, compared with the model before anybody serves them."""

from __future__ import annotations

import functools
import os
import shutil
import uuid
from pathlib import Path

import keras
import tensorflow as tf

from keras_deeplab.data.decoding import decode_image
from keras_deeplab.data.exif_in_graph import jpeg_orientation, turned
from keras_deeplab.inference import label_dtype, logits_spec
from keras_deeplab.verification import (
    ENCODED_CHANNELS,
    SERVING_DEFAULT,
    SERVING_ENCODED,
    ExportError,
    verify,
)

__all__ = ["ExportError", "saved_model", "verify"]


def saved_model(
    model: keras.Model,
    path: str | os.PathLike,
    overwrite: bool = False,
    tolerance: float | None = None,
) -> Path:
    """Writes a model as a SavedModel that needs TensorFlow alone, and compares it with the model.

    Signatures, both with `labels` `(batch, height, width)` (uint8, or int32 above 255 classes)
    and `probabilities` float32 `(batch, height, width, num_classes)` at the input's size:

    - `serving_default` takes `images`, uint8 `(batch, height, width, channels)` in 0..255, of any
      batch, height and width that the model leaves open.
    - `serving_encoded` takes `encoded`, a string tensor `(batch,)` of JPEG, PNG, WebP or BMP files
      (24 or 32 bits, uncompressed), all of one size: other requests are refused with a message.
      Pixels are those that training reads, but a graph has no TIFF and no BMP with a palette. A
      JPEG is turned by its EXIF orientation, as `predict` does, and the outputs have the turned
      size; PNG and WebP are taken as they are stored. It is written for models of 1 or 3 channels.

    The export is written beside `path`, verified there (see `verify`) and then renamed, so that
    nothing unfinished or wrong is ever at `path`.

    Args:
        model: Segmentation model on pixels `(batch, height, width, channels)` in 0..255 that
            returns logits `(batch, height, width, num_classes)`.
        path: Folder of the SavedModel.
        overwrite: Whether a SavedModel that is already there is replaced, after the new one is
            verified. A folder that is no SavedModel is never replaced.
        tolerance: Largest difference of a probability in the comparison; see `verify`.

    Returns:
        The path.

    Raises:
        FileExistsError: If something is at `path` that may not be replaced.
        ExportError: If the SavedModel cannot be loaded or answers differently.

    Example:

    >>> keras_deeplab.export.saved_model(model, "saved_model")
    >>> serve = tf.saved_model.load("saved_model").signatures["serving_default"]
    >>> serve(images=photographs)["labels"]
    """
    path = Path(path)
    _check_target(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    try:
        _write(model, aside)
        verify(model, aside, tolerance)
        _replace(path, aside)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return path


def _check_target(path: Path, overwrite: bool) -> None:
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not (path / "saved_model.pb").is_file():
        raise FileExistsError(f"path must be free or a SavedModel; received {path}, something else")
    if not overwrite:
        raise FileExistsError(
            f"path must be free unless overwrite=True; received {path}, a SavedModel"
        )


def _replace(path: Path, aside: Path) -> None:
    """Puts a verified export at `path`; the old one stays until the new one is there."""
    old = aside.with_name(f"{aside.name}.old")
    if path.exists():
        path.rename(old)
    try:
        aside.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _write(model: keras.Model, path: Path) -> None:
    spec, num_classes = logits_spec(model)
    archive = keras.export.ExportArchive()

    def serve(images: tf.Tensor) -> dict[str, tf.Tensor]:
        logits = model(tf.cast(images, spec.dtype), training=False)
        logits = tf.cast(logits, tf.float32)
        labels = tf.argmax(logits, -1, output_type=tf.int32)
        return {
            "labels": tf.cast(labels, label_dtype(num_classes)),
            "probabilities": tf.nn.softmax(logits),
        }

    images = tf.TensorSpec(spec.shape, tf.uint8, name="images")
    serve_images = archive.add_endpoint(SERVING_DEFAULT, serve, input_signature=[images])
    channels = spec.shape[-1]
    if channels in ENCODED_CHANNELS:

        def serve_encoded(encoded: tf.Tensor) -> dict[str, tf.Tensor]:
            return serve_images(tf.ensure_shape(_decoded(encoded, channels), spec.shape))

        encoded = tf.TensorSpec(spec.shape[:1], tf.string, name="encoded")
        archive.add_endpoint(SERVING_ENCODED, serve_encoded, input_signature=[encoded])
    archive.write_out(path, verbose=False)


@functools.cache  # traced once, however many models are exported
def _upright(channels: int) -> tf.types.experimental.PolymorphicFunction:
    """Returns the function that decodes one encoded photograph, as viewers show it."""

    @tf.function(input_signature=[tf.TensorSpec((), tf.string)], autograph=False)
    def upright(photograph: tf.Tensor) -> tf.Tensor:
        return turned(decode_image(photograph, channels), jpeg_orientation(photograph))

    return upright


def _decoded(encoded: tf.Tensor, channels: int) -> tf.Tensor:
    """Decodes a batch of encoded photographs of one size, as viewers show them."""
    upright = _upright(channels)
    count = tf.debugging.Assert(
        tf.size(encoded) > 0, ["encoded must hold at least one photograph; received none"]
    )
    with tf.control_dependencies([count]):
        first = tf.shape(upright(encoded[0]))

    def one(photograph: tf.Tensor) -> tf.Tensor:
        pixels = upright(photograph)
        size = tf.shape(pixels)
        rule = "encoded must hold photographs of one size; received heights, widths and channels"
        check = tf.debugging.Assert(tf.reduce_all(size == first), [rule, first, "and", size])
        with tf.control_dependencies([check]):
            return tf.identity(pixels)

    pixels = tf.TensorSpec((None, None, channels), tf.uint8)
    return tf.map_fn(one, encoded, fn_output_signature=pixels)
