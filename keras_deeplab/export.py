"""SavedModels that take images, verified against the model."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import keras
import tensorflow as tf

from keras_deeplab.data.in_graph import bytes_at, decode_image, jpeg_orientation, turned
from keras_deeplab.inference import label_dtype, logits_spec
from keras_deeplab.validation import integer
from keras_deeplab.verification import (
    ENCODED_CHANNELS,
    SERVING_DEFAULT,
    SERVING_ENCODED,
    TOLERANCE,
    ExportError,
    check_difference,
    test_images,
    verified_shapes,
    verify,
)

__all__ = ["ExportError", "classifier", "saved_model", "verify"]

MAX_PIXELS = 2**24
STRIDE = 32  # of the coarsest features; an image has at least one along each side


def saved_model(
    model: keras.Model,
    path: str | os.PathLike,
    overwrite: bool = False,
    tolerance: float | None = None,
    max_pixels: int | None = None,
) -> Path:
    """Writes a model as a SavedModel that needs only TensorFlow, and compares it with the model.

    Signatures, both with `labels` `(batch, height, width)` (uint8, or int32 above 255 classes)
    and `probabilities` float32 `(batch, height, width, num_classes)` at the input's size:

    - `serving_default` takes `images`, uint8 `(batch, height, width, channels)` in 0..255, of any
      batch, height and width that the model does not fix.
    - `serving_encoded` takes `encoded`, a string tensor `(batch,)` of JPEG, PNG, WebP or BMP files
      (24 or 32 bits, uncompressed) of one size. The EXIF orientation of a JPEG is applied, as
      `predict` does, but not that of PNG and WebP. Only for models of 1 or 3 channels.

    Requests of another shape, empty ones and those of more than `max_pixels` pixels (for encoded
    files as their headers declare) are refused inside the graph, before anything is computed:
    servers do not compare requests with the signature, and some would end the process.

    The SavedModel is verified (see `verify`) in a temporary folder, then renamed to `path`.

    Args:
        model: Segmentation model from pixels `(batch, height, width, channels)` in 0..255 to
            logits `(batch, height, width, num_classes)`.
        path: Folder of the SavedModel.
        overwrite: Whether an existing SavedModel is replaced. Other folders are never replaced.
        tolerance: Largest difference of a probability in the comparison; see `verify`.
        max_pixels: Largest number of pixels of a request, `batch * height * width` with the sides
            rounded up to multiples of 32, since thin and tiny images cost as much. Set it by the
            memory of the server: a DeepLabV3+ on MobileNetV2 with 21 classes takes about 0.4 GB
            per megapixel. By default 2^24, or two images of the model's fixed size if larger.

    Returns:
        The path.

    Raises:
        ValueError: If the model is not a segmentation model, or `max_pixels` is too small for the
            images that are compared.
        FileExistsError: If something is at `path` that may not be replaced.
        ExportError: If the SavedModel cannot be loaded or its outputs differ.

    Example:

    >>> keras_deeplab.export.saved_model(model, "saved_model")
    >>> serve = tf.saved_model.load("saved_model").signatures["serving_default"]
    >>> serve(images=images)["labels"]
    """
    spec, _ = logits_spec(model)
    needed = max(map(_pixels, verified_shapes(spec)))
    if max_pixels is None:
        max_pixels = max(MAX_PIXELS, needed)
    max_pixels = integer("max_pixels", max_pixels, minimum=needed)  # of the images compared
    with _verified_folder(path, overwrite) as temporary:
        _write(model, temporary, max_pixels)
        verify(model, temporary, tolerance)
    return Path(path)


def classifier(model: keras.Model, path: str | os.PathLike, overwrite: bool = False) -> Path:
    """Writes an image classifier as a SavedModel, and compares it with the model.

    The SavedModel is that of `model.export`: it takes float32 images `(batch, height, width,
    channels)` and returns logits. As in `saved_model`, it replaces `path` once verified.

    Args:
        model: Model from images of any size, or of one, to logits `(batch, num_classes)`.
        path: Folder of the SavedModel.
        overwrite: Whether an existing SavedModel is replaced.

    Returns:
        The path.

    Raises:
        FileExistsError, ExportError: As `saved_model` does.

    Example:

    >>> model = keras_deeplab.SPPNet(5, "alexnet", levels=(2, 1), dense=())
    >>> path = keras_deeplab.export.classifier(model, "classifier")
    """
    with _verified_folder(path, overwrite) as temporary:
        model.export(temporary, verbose=False)
        served = tf.saved_model.load(str(temporary))
        for shape in dict.fromkeys(verified_shapes(tf.TensorSpec(model.input_shape))):
            images = test_images(shape)[0].astype("float32")
            expected, found = (tf.nn.softmax(f(images)) for f in (model, served.serve))
            check_difference(f"{path}: at {shape[1]}x{shape[2]}", found, expected, TOLERANCE)
    return Path(path)


@contextmanager
def _verified_folder(path: str | os.PathLike, overwrite: bool) -> Iterator[Path]:
    """Yields a temporary folder beside `path` that takes its place when the block succeeds."""
    path = Path(path)
    empty = not path.exists() or (path.is_dir() and not any(path.iterdir()))
    if not empty and not (overwrite and (path / "saved_model.pb").is_file()):
        raise FileExistsError(
            "`path` must be a new folder or a SavedModel to replace with overwrite=True. "
            f"Received: path={path}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    old = path.with_name(f"{temporary.name}.old")
    try:
        yield temporary
        if path.exists():
            path.rename(old)
        temporary.rename(path)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)


def _write(model: keras.Model, path: Path, max_pixels: int) -> None:
    spec, num_classes = logits_spec(model)
    archive = keras.export.ExportArchive()

    def serve(images: tf.Tensor) -> dict[str, tf.Tensor]:
        images = _checked_images(images, spec.shape, max_pixels)
        logits = tf.cast(model(tf.cast(images, spec.dtype), training=False), tf.float32)
        labels = tf.argmax(logits, -1, output_type=tf.int32)
        return {
            "labels": tf.cast(labels, label_dtype(num_classes)),
            "probabilities": tf.nn.softmax(logits),
        }

    images = tf.TensorSpec(spec.shape, tf.uint8, name="images")
    serve_images = archive.add_endpoint(SERVING_DEFAULT, serve, input_signature=[images])
    channels = spec.shape[-1]
    if channels in ENCODED_CHANNELS:

        def decode(encoded: tf.Tensor) -> tf.Tensor:
            return turned(decode_image(encoded, channels), jpeg_orientation(encoded))

        def serve_encoded(encoded: tf.Tensor) -> dict[str, tf.Tensor]:
            encoded = _checked_files(encoded, max_pixels)
            pixels = tf.TensorSpec((None, None, channels), tf.uint8)
            # Raises an error if the sizes differ.
            images = tf.map_fn(decode, encoded, fn_output_signature=pixels)
            return serve_images(tf.ensure_shape(images, spec.shape))

        files = tf.TensorSpec(spec.shape[:1], tf.string, name="encoded")
        archive.add_endpoint(SERVING_ENCODED, serve_encoded, input_signature=[files])
    archive.write_out(path, verbose=False)


def _pixels(shape: Sequence[int]) -> int:
    """The pixels of a batch of images with the sides rounded up."""
    batch, height, width, _ = shape
    return batch * (-(-height // STRIDE) * STRIDE) * (-(-width // STRIDE) * STRIDE)


def _asserted(value: tf.Tensor, valid: tf.Tensor, *message: str | tf.Tensor) -> tf.Tensor:
    """Returns a value that is computed after an assertion, and so is all that uses it."""
    with tf.control_dependencies([tf.debugging.Assert(valid, message)]):
        return tf.identity(value)


def _checked_images(images: tf.Tensor, shape: tf.TensorShape, max_pixels: int) -> tf.Tensor:
    """Raises an error for images of another shape, an empty batch or too many pixels.

    Servers do not check the rank of a signature. `ensure_shape` does; an assertion would compare
    constants of the graph, taken from the signature.
    """
    images = tf.ensure_shape(images, shape, name="images")
    # In float64, where no product of sizes overflows.
    pixels = _pixels(tf.unstack(tf.cast(tf.shape(images), tf.float64)))
    rule = (
        f"images must hold 1 to {max_pixels} pixels, sides rounded up to multiples of {STRIDE}; "
        "received batch, height and width:"
    )
    return _asserted(images, (pixels > 0) & (pixels <= max_pixels), rule, tf.shape(images)[:3])


def _checked_files(encoded: tf.Tensor, max_pixels: int) -> tf.Tensor:
    """Raises an error for an empty batch, or files whose headers declare too many pixels."""
    encoded = tf.ensure_shape(encoded, [None], name="encoded")
    pixels = tf.reduce_sum(tf.map_fn(_declared_pixels, encoded, fn_output_signature=tf.float64))
    valid = (tf.size(encoded) > 0) & (pixels <= max_pixels)
    rule = f"encoded must hold images of up to {max_pixels} pixels; received images and pixels:"
    return _asserted(encoded, valid, rule, tf.size(encoded), pixels)


def _declared_pixels(encoded: tf.Tensor) -> tf.Tensor:
    """Height times width, float64, from the header of a PNG, JPEG or WebP file.

    It is 0 for other files, which cannot declare more pixels than they have.
    """
    header = tf.cast(bytes_at(encoded, tf.constant(0), 30), tf.float64)

    def holds(first: int, text: bytes) -> tf.Tensor:
        return tf.reduce_all(header[first : first + len(text)] == list(text))

    def number(digits: tf.Tensor) -> tf.Tensor:  # little-endian
        return tf.reduce_sum(digits * [256.0**power for power in range(digits.shape[0])])

    def jpeg_pixels() -> tf.Tensor:
        return tf.reduce_prod(tf.cast(tf.image.extract_jpeg_shape(encoded)[:2], tf.float64))

    png, webp, lossless = holds(0, b"\x89PN"), holds(0, b"RIF"), number(header[21:25])
    rule = "encoded must hold PNG files that begin with their header"
    header = _asserted(header, ~png | holds(12, b"IHDR"), rule)
    sizes = [  # a WebP file is lossy, lossless or extended
        (png, number(header[19:15:-1]), number(header[23:19:-1])),
        (webp & holds(15, b" "), number(header[26:28]) % 2**14, number(header[28:30]) % 2**14),
        (webp & holds(15, b"L"), lossless % 2**14 + 1, lossless // 2**14 % 2**14 + 1),
        (webp & holds(15, b"X"), number(header[24:27]) + 1, number(header[27:30]) + 1),
    ]
    pixels = tf.add_n([tf.where(kind, width * height, 0) for kind, width, height in sizes])
    return tf.cond(holds(0, b"\xff\xd8\xff"), jpeg_pixels, lambda: pixels)
