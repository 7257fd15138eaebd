"""SavedModels that take images, for TensorFlow and TensorFlow Serving."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_deeplab.data import DatasetInfo, Source
from keras_deeplab.data.bands import Bands
from keras_deeplab.data.in_graph import decode_image, jpeg_orientation, turned
from keras_deeplab.export.comparison import (
    ExportError,
    Limits,
    built_in_images,
    built_in_shapes,
    check_export,
    image_batches,
)
from keras_deeplab.export.definition import DEFAULT_OUTPUTS, Definition
from keras_deeplab.export.placing import verified_folder
from keras_deeplab.export.requests import checked_files, checked_images, pixels_of
from keras_deeplab.export.warmup import write_warmup
from keras_deeplab.memory import return_free_memory
from keras_deeplab.runtimes import (
    METADATA_FILE,
    SERVING_DEFAULT,
    ExportedModel,
    labels_of,
    signatures,
)
from keras_deeplab.validation import integer

SERVING_ENCODED = "serving_encoded"
MAX_PIXELS = 2**24
EQUAL_LABELS = 0.95  # of the two signatures, which TensorFlow may compute in different order
WARMUP_FILE = Path("assets.extra", "tf_serving_warmup_requests")


def saved_model(
    model: keras.Model,
    path: str | os.PathLike,
    overwrite: bool = False,
    *,
    precision: str | None = None,
    outputs: Sequence[str] = DEFAULT_OUTPUTS,
    info: DatasetInfo | None = None,
    image_size: tuple[int, int] | None = None,
    images: Sequence[np.ndarray | str | os.PathLike] | None = None,
    source: Source | None = None,
    limits: Limits | None = None,
    max_pixels: int | None = None,
) -> Path:
    """Writes a model as a SavedModel that needs only TensorFlow, and compares it with the model.

    Signatures, both with the outputs `labels` `(batch, height, width)` (uint8, or int32 above 255
    classes) and `probabilities` or `logits` float32 `(batch, height, width, num_classes)`:

    - `serving_default` takes `images`, uint8 `(batch, height, width, channels)` in 0..255, of any
      batch, height and width that are not fixed.
    - `serving_encoded` takes `encoded`, a string tensor `(batch,)` of JPEG, PNG, WebP or BMP files
      (24 or 32 bits, uncompressed) of one size. The EXIF orientation of a JPEG is applied, as
      `predict` does, but not that of PNG and WebP. Only for 1 or 3 channels and without a value
      range in `info`.

    Requests of another shape, empty ones and those of more than `max_pixels` pixels (for encoded
    files as their headers declare) are refused inside the graph, before anything is computed:
    servers do not compare requests with the signature, and some would end the process.

    The weights are constants, with batch norms folded into the convolutions. `assets.extra` holds
    the metadata and the warm-up requests of TensorFlow Serving. The SavedModel is compared with the
    model in a temporary folder, then renamed to `path`.

    Args:
        model: Segmentation model from pixels `(batch, height, width, channels)` in 0..255 to
            logits `(batch, height, width, num_classes)`.
        path: Folder of the SavedModel.
        overwrite: Whether an existing SavedModel is replaced. Other folders are never replaced.
        precision: `"float32"` or `"bfloat16"`, fast on processors that compute in it; by default
            that which the model computes in.
        outputs: Of `"labels"`, `"probabilities"` and `"logits"`.
        info: Names and colours of the classes, to be stored.
        image_size: `(height, width)` of all images; by default the model's, mostly any.
        images: Images on which the export is compared, files or uint8 `(height, width, channels)`;
            by default random ones of 97x129 and of 71x65 pixels.
        source: Labelled images, on which the mean IoU of model and export are compared.
        limits: Largest deviations; by default those of the precision, 1e-3 of a probability in
            float32.
        max_pixels: Largest number of pixels of a request, `batch * height * width` with the sides
            rounded up to multiples of 32, since thin and tiny images cost as much. Set it by the
            memory of the server: a DeepLabV3+ on MobileNetV2 with 21 classes takes about 0.4 GB
            per megapixel. By default 2^24, or the largest batch that is compared if larger.

    Returns:
        The path.

    Raises:
        ValueError: If the model is not a segmentation model, an argument is out of its range, or
            `max_pixels` is too small for the images that are compared.
        FileExistsError: If something is at `path` that may not be replaced.
        ExportError: If the SavedModel cannot be loaded or deviates by more than the limits.

    Example:

    >>> keras_deeplab.export.saved_model(model, "saved_model")
    >>> serve = tf.saved_model.load("saved_model").signatures["serving_default"]
    >>> serve(images=images)["labels"]
    """
    definition = Definition(model, precision, ("float32", "bfloat16"), outputs, info, image_size)
    shape = definition.spec.shape
    compared = None if images is None else image_batches(images, shape, info)
    shapes = [batch.shape for batch in compared] if compared else built_in_shapes(shape)
    needed = max(map(pixels_of, shapes))
    if max_pixels is None:
        max_pixels = max(MAX_PIXELS, needed)
    max_pixels = integer("max_pixels", max_pixels, minimum=needed)
    with verified_folder(path, overwrite) as temporary:
        _write(definition, temporary, max_pixels)
        return_free_memory()
        try:
            functions = signatures(temporary)
        except Exception as fault:  # TensorFlow has many
            raise ExportError(f"{temporary} cannot be opened: {fault}") from fault
        exported = ExportedModel(temporary, definition.metadata, functions[SERVING_DEFAULT])
        check_export(exported, definition, limits, compared, source)
        return_free_memory()
        if SERVING_ENCODED in functions:
            _check_encoded(functions, shape)
        del exported, functions
        return_free_memory()
    return Path(path)


def _write(definition: Definition, path: Path, max_pixels: int) -> None:
    frozen, shape = definition.frozen("server"), definition.spec.shape
    channels = shape[-1]

    def serve(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return frozen(checked_images(images, shape, max_pixels))

    def decode(encoded: tf.Tensor) -> tf.Tensor:
        return turned(decode_image(encoded, channels), jpeg_orientation(encoded))

    def serve_encoded(encoded: tf.Tensor) -> dict[str, tf.Tensor]:
        encoded = checked_files(encoded, max_pixels)
        pixels = tf.TensorSpec((None, None, channels), tf.uint8)
        # Raises an error if the sizes differ.
        images = tf.map_fn(decode, encoded, fn_output_signature=pixels)
        return serve(tf.ensure_shape(images, shape))

    module, endpoints = tf.Module(), {SERVING_DEFAULT: (serve, definition.spec)}
    info = definition.metadata.info
    takes_files = Bands(channels, info and info.value_range).are_plain
    if takes_files:
        files = tf.TensorSpec(shape[:1], tf.string, name="encoded")
        endpoints[SERVING_ENCODED] = serve_encoded, files
    for name, (function, spec) in endpoints.items():
        function = tf.function(function, input_signature=[spec], autograph=False)
        setattr(module, name, function)
    tf.saved_model.save(module, path, {name: getattr(module, name) for name in endpoints})
    (path / METADATA_FILE).parent.mkdir()
    (path / METADATA_FILE).write_text(definition.metadata.to_json(), encoding="utf-8")
    pixels = np.zeros(built_in_shapes(shape)[0], np.uint8)
    requests = {SERVING_DEFAULT: {"images": pixels}}
    if takes_files:
        encoded = [tf.io.encode_png(image).numpy() for image in pixels]
        requests[SERVING_ENCODED] = {"encoded": np.array(encoded, object)}
    write_warmup(path / WARMUP_FILE, requests)


def _check_encoded(functions: Mapping[str, Any], shape: tf.TensorShape) -> None:
    """Compares the labels of the two signatures on JPEG and PNG files, or raises an ExportError."""
    for batch in built_in_images(shape):
        for encode in (tf.io.encode_jpeg, tf.io.encode_png):
            files = [encode(image).numpy() for image in batch]
            pixels = np.stack([tf.io.decode_image(file) for file in files])
            expected = labels_of(functions[SERVING_DEFAULT](pixels))
            try:
                found = labels_of(functions[SERVING_ENCODED](np.array(files, object)))
            except tf.errors.OpError as fault:
                raise ExportError(f"{SERVING_ENCODED} failed: {fault}") from fault
            equal = np.mean(found == expected)
            if equal < EQUAL_LABELS:
                raise ExportError(
                    f"{SERVING_ENCODED}: {equal:.2%} of the labels equal those of {SERVING_DEFAULT}"
                )
