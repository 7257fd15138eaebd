"""SavedModels that take images, verified against the model."""

from __future__ import annotations

import functools
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import keras
import tensorflow as tf

from keras_deeplab.data.in_graph import decode_image, jpeg_orientation, turned
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
      (24 or 32 bits, uncompressed), all of one size. Pixels are those that training reads, without
      TIFF files and palettes in BMP files, which a graph cannot decode. The EXIF orientation of a
      JPEG is applied, as `predict` does, but not that of PNG and WebP. It is written for models of
      1 or 3 channels.

    A request of another rank or shape, an empty one and one of more than `max_pixels` pixels is
    refused inside the graph, before anything is computed: servers do not compare requests with the
    signature, and some requests make TensorFlow's kernels end the process. The pixels of encoded
    files are those that their headers declare, so that a small file cannot take much memory.

    The export is written to a temporary folder beside `path`, verified there (see `verify`) and
    then renamed.

    Args:
        model: Segmentation model on pixels `(batch, height, width, channels)` in 0..255 that
            returns logits `(batch, height, width, num_classes)`.
        path: Folder of the SavedModel.
        overwrite: Whether an existing SavedModel is replaced, after the new one is verified. Other
            folders are never replaced.
        tolerance: Largest difference of a probability in the comparison; see `verify`.
        max_pixels: Largest number of pixels of a request, `batch * height * width` with the sides
            rounded up to multiples of 32, since thin and tiny images cost as much. Set it by the
            memory of the server, as a process that runs out of memory is killed: a DeepLabV3+ on
            MobileNetV2 with 21 classes takes about 0.4 GB per megapixel. By default 2^24, or the
            pixels of two images of the model's fixed input size if these are more.

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
    needed = max(_pixels(shape) for shape in verified_shapes(spec))
    if max_pixels is None:
        max_pixels = max(MAX_PIXELS, needed)
    max_pixels = integer("max_pixels", max_pixels, minimum=needed)  # of the images compared
    with _verified_folder(path, overwrite) as temporary:
        _write(model, temporary, max_pixels)
        verify(model, temporary, tolerance)
    return Path(path)


def classifier(
    model: keras.Model,
    path: str | os.PathLike,
    overwrite: bool = False,
    tolerance: float = TOLERANCE,
) -> Path:
    """Writes an image classifier as a SavedModel, and compares it with the model.

    The SavedModel is that of `model.export`: it takes float32 images `(batch, height, width,
    channels)` and returns logits. As in `saved_model`, it replaces `path` once verified.

    Args:
        model: Model from images of any size, or of one, to logits `(batch, num_classes)`.
        path: Folder of the SavedModel.
        overwrite: Whether an existing SavedModel is replaced.
        tolerance: Largest difference of a probability.

    Returns:
        The path.

    Raises:
        FileExistsError: If something is at `path` that may not be replaced.
        ExportError: If the outputs differ.

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
            check_difference(f"{path}: at {shape[1]}x{shape[2]}", found, expected, tolerance)
    return Path(path)


@contextmanager
def _verified_folder(path: str | os.PathLike, overwrite: bool) -> Iterator[Path]:
    """Yields a temporary folder beside `path` that takes its place when the block succeeds."""
    path = Path(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        if not (path / "saved_model.pb").is_file():
            raise FileExistsError(
                f"`path` must be a new folder or a SavedModel. Received: path={path}"
            )
        if not overwrite:
            raise FileExistsError(
                f"`path` must be a new folder unless overwrite=True. Received: path={path}"
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
            encoded = _checked_files(encoded, max_pixels)
            pixels = tf.TensorSpec((None, None, channels), tf.uint8)
            # Raises an error if the sizes differ.
            images = tf.map_fn(_decode_upright(channels), encoded, fn_output_signature=pixels)
            return serve_images(tf.ensure_shape(images, spec.shape))

        files = tf.TensorSpec(spec.shape[:1], tf.string, name="encoded")
        archive.add_endpoint(SERVING_ENCODED, serve_encoded, input_signature=[files])
    archive.write_out(path, verbose=False)


def _pixels(shape: Sequence[int]) -> int:
    """The pixels of a batch of images with the sides rounded up."""
    batch, height, width, _ = shape
    return batch * (-(-height // STRIDE) * STRIDE) * (-(-width // STRIDE) * STRIDE)


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
    valid = (pixels > 0) & (pixels <= max_pixels)
    check = tf.debugging.Assert(valid, [rule, tf.shape(images)[:3]])
    with tf.control_dependencies([check]):
        return tf.identity(images)


def _checked_files(encoded: tf.Tensor, max_pixels: int) -> tf.Tensor:
    """Raises an error for an empty batch, or files whose headers declare too many pixels."""
    encoded = tf.ensure_shape(encoded, [None], name="encoded")
    count = tf.debugging.Assert(
        tf.size(encoded) > 0, ["encoded must hold at least one image; received none"]
    )
    with tf.control_dependencies([count]):
        pixels = tf.map_fn(_declared_pixels, encoded, fn_output_signature=tf.float64)
    rule = f"encoded must hold up to {max_pixels} pixels; received files that declare"
    total = tf.reduce_sum(pixels)
    check = tf.debugging.Assert(total <= max_pixels, [rule, total])
    with tf.control_dependencies([check]):
        return tf.identity(encoded)


def _declared_pixels(encoded: tf.Tensor) -> tf.Tensor:
    """Height times width, float64, from the header of a PNG, JPEG or WebP file.

    It is 0 for other files, which cannot declare more pixels than they have.
    """
    header = tf.cast(tf.io.decode_raw(encoded, tf.uint8, fixed_length=30), tf.int64)

    def number(first: int, size: int) -> tf.Tensor:  # little-endian
        return tf.reduce_sum(header[first : first + size] * [256**i for i in range(size)])

    def of_png() -> tf.Tensor:
        rule = "encoded must hold PNG files that begin with their header"
        check = tf.debugging.Assert(tf.reduce_all(header[12:16] == list(b"IHDR")), [rule])
        with tf.control_dependencies([check]):
            words = tf.io.decode_raw(encoded, tf.int32, little_endian=False, fixed_length=24)
        return tf.reduce_prod(tf.cast(words[4:], tf.float64))

    def of_jpeg() -> tf.Tensor:
        size = tf.image.extract_jpeg_shape(encoded, tf.int32)
        return tf.reduce_prod(tf.cast(size[:2], tf.float64))

    def of_webp() -> tf.Tensor:
        lossless = number(21, 4)
        sides = {  # by the fourth letter of the first chunk
            " ": (number(26, 2) % 2**14, number(28, 2) % 2**14),
            "L": (lossless % 2**14 + 1, lossless // 2**14 % 2**14 + 1),
            "X": (number(24, 3) + 1, number(27, 3) + 1),
        }
        pixels = [
            tf.where(header[15] == ord(kind), width * height, 0)
            for kind, (width, height) in sides.items()
        ]
        return tf.cast(tf.add_n(pixels), tf.float64)

    starts = {b"\x89PN": of_png, b"\xff\xd8\xff": of_jpeg, b"RIF": of_webp}
    cases = [(tf.reduce_all(header[:3] == list(start)), of) for start, of in starts.items()]
    return tf.case(cases, default=lambda: tf.constant(0.0, tf.float64))


@functools.cache  # traced once for all exports
def _decode_upright(channels: int) -> tf.types.experimental.PolymorphicFunction:
    """The function that decodes one image and applies its EXIF orientation."""

    @tf.function(input_signature=[tf.TensorSpec((), tf.string)], autograph=False)
    def decode(encoded: tf.Tensor) -> tf.Tensor:
        return turned(decode_image(encoded, channels), jpeg_orientation(encoded))

    return decode
