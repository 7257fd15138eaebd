"""Checks of requests inside the graph of a SavedModel, before anything is computed.

Servers do not compare requests with the signature, and some requests would end the process.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from keras_deeplab.data.in_graph import bytes_at

STRIDE = 32  # of the coarsest features; an image has at least one along each side


def pixels_of(shape: Sequence[int]) -> int:
    """The pixels of a batch of images with the sides rounded up."""
    batch, height, width, _ = shape
    return batch * (-(-height // STRIDE) * STRIDE) * (-(-width // STRIDE) * STRIDE)


def _asserted(value: tf.Tensor, valid: tf.Tensor, *message: str | tf.Tensor) -> tf.Tensor:
    """Returns a value that is computed after an assertion, and so is all that uses it."""
    with tf.control_dependencies([tf.debugging.Assert(valid, message)]):
        return tf.identity(value)


def checked_images(images: tf.Tensor, shape: tf.TensorShape, max_pixels: int) -> tf.Tensor:
    """Raises an error for images of another shape, an empty batch or too many pixels.

    Servers do not check the rank of a signature. `ensure_shape` does; an assertion would compare
    constants of the graph, taken from the signature.
    """
    images = tf.ensure_shape(images, shape, name="images")
    # In float64, where no product of sizes overflows.
    pixels = pixels_of(tf.unstack(tf.cast(tf.shape(images), tf.float64)))
    rule = (
        f"images must hold 1 to {max_pixels} pixels, sides rounded up to multiples of {STRIDE}; "
        "received batch, height and width:"
    )
    return _asserted(images, (pixels > 0) & (pixels <= max_pixels), rule, tf.shape(images)[:3])


def checked_files(encoded: tf.Tensor, max_pixels: int) -> tf.Tensor:
    """Raises an error for an empty batch, or files whose headers declare too many pixels."""
    encoded = tf.ensure_shape(encoded, [None], name="encoded")
    pixels = tf.reduce_sum(tf.map_fn(declared_pixels, encoded, fn_output_signature=tf.float64))
    valid = (tf.size(encoded) > 0) & (pixels <= max_pixels)
    rule = f"encoded must hold images of up to {max_pixels} pixels; received images and pixels:"
    return _asserted(encoded, valid, rule, tf.size(encoded), pixels)


def declared_pixels(encoded: tf.Tensor) -> tf.Tensor:
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
