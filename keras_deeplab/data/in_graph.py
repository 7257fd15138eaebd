"""Decoding of images in a TensorFlow graph, for exported models."""

from __future__ import annotations

import tensorflow as tf

from keras_deeplab.data.formats import LUMA
from keras_deeplab.data.orientation import MIRRORED, UPRIGHT, UPSIDE_DOWN

_TAG = 0x0112
_ENTRIES = 64  # of the image file directory that are read; cameras write about 15
_SEGMENTS = 64
_HEADER = 34  # bytes that identify a format


def decode_image(encoded: tf.Tensor, channels: int = 3) -> tf.Tensor:
    """Decodes the bytes of one image to uint8 `(height, width, channels)`, as stored.

    The pixels equal those of `decoding.read_picture`. Other formats, and those that a graph cannot
    decode (TIFF, BMP with a palette), raise an InvalidArgumentError.
    """
    header = bytes_at(encoded, tf.constant(0), _HEADER)

    def holds(position: int, *values: int) -> tf.Tensor:
        return tf.reduce_all(header[position : position + len(values)] == values)

    bmp = holds(0, *b"BM") & (holds(28, 24, 0) | holds(28, 32, 0)) & holds(30, 0, 0, 0, 0)
    animated = holds(12, *b"VP8X") & (header[20] & 2 > 0)
    webp = holds(0, *b"RIFF") & holds(8, *b"WEBP") & ~animated
    png = holds(0, *b"\x89PNG")
    rule = "encoded must hold JPEG, PNG, WebP (of one image) or BMP (24 or 32 bits, uncompressed)"
    known = tf.debugging.Assert(
        holds(0, 0xFF, 0xD8, 0xFF) | png | webp | bmp, [rule, "; received bytes that begin", header]
    )

    def deep() -> tf.Tensor:
        values = tf.io.decode_png(encoded, channels, tf.uint16)
        return tf.cast(tf.bitwise.right_shift(values, tf.constant(8, tf.uint16)), tf.uint8)

    with tf.control_dependencies([known]):
        image = tf.case(
            [
                (png & (header[24] == 16), deep),
                (webp | bmp, lambda: decode_stored_channels(encoded, channels)),
            ],
            default=lambda: tf.io.decode_image(encoded, channels, expand_animations=False),
        )
    return tf.ensure_shape(image, (None, None, channels))


def decode_stored_channels(encoded: tf.Tensor, channels: int) -> tf.Tensor:
    """Decodes WebP and BMP, of which TensorFlow gives all stored channels only."""
    color = tf.io.decode_image(encoded, expand_animations=False)[..., :3]
    if channels == 3:
        return color
    grey = tf.tensordot(tf.cast(color, tf.int32), tf.constant(LUMA), 1)
    return tf.cast((grey[..., None] + 32768) // 65536, tf.uint8)


def jpeg_orientation(encoded: tf.Tensor) -> tf.Tensor:
    """Returns the EXIF orientation of one encoded image, int32 in 1..8.

    It is 1 without valid EXIF. TensorFlow has no op for it.
    """

    def next_segment(position: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        head = bytes_at(encoded, position, 10)
        length = 256 * head[2] + head[3]
        found = (head[1] == 0xE1) & tf.reduce_all(head[4:] == list(b"Exif\0\0"))
        image_data = (head[1] == 0xDA) | (head[1] == 0xD9)
        last = found | image_data | (head[0] != 0xFF) | (length < 2)
        return tf.where(last, -1, position + 2 + length), tf.where(found, position + 10, -1)

    is_jpeg = tf.reduce_all(bytes_at(encoded, tf.constant(0), 2) == [0xFF, 0xD8])
    start = tf.where(is_jpeg, 2, -1)
    _, tiff = tf.while_loop(
        lambda position, _: position >= 0,
        next_segment,
        (start, tf.constant(-1)),
        maximum_iterations=_SEGMENTS,
    )
    return tf.where(tiff >= 0, _orientation(encoded, tiff), UPRIGHT)


def turned(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Returns stored pixels `(height, width, channels)` as viewers display them."""
    image = tf.cond(orientation >= 5, lambda: _transposed(image), lambda: image)
    for axis, orientations in ((1, MIRRORED), (0, UPSIDE_DOWN)):
        reverse = tf.reduce_any(orientation == list(orientations))
        flipped = tf.reverse(image, (axis,))
        image = tf.where(reverse, flipped, image)
    return image


def _transposed(image: tf.Tensor) -> tf.Tensor:
    """Swaps height and width.

    `tf.transpose` of uint8 logs an error of oneDNN on processors without AVX-512.
    """
    height, width, channels = tf.unstack(tf.shape(image))
    places = tf.range(width)[:, None] + width * tf.range(height)
    return tf.gather(tf.reshape(image, (height * width, channels)), places)


def _orientation(encoded: tf.Tensor, tiff: tf.Tensor) -> tf.Tensor:
    """Returns the orientation in the first directory of the EXIF data that start at `tiff`."""
    header = bytes_at(encoded, tiff, 8)
    little = header[0] == ord("I")

    def number(digits: tf.Tensor) -> tf.Tensor:
        """The integers in the last axis, of 2 or 4 bytes."""
        digits = tf.cast(tf.where(little, digits, tf.reverse(digits, (-1,))), tf.int64)
        return tf.reduce_sum(digits * [256**power for power in range(digits.shape[-1])], -1)

    offset = tf.minimum(number(header[4:]), 2**30)  # positions are int32
    directory = bytes_at(encoded, tiff + tf.cast(offset, tf.int32), 2 + 12 * _ENTRIES)
    entries = tf.reshape(directory[2:], (_ENTRIES, 12))
    used = tf.range(_ENTRIES, dtype=tf.int64) < number(directory[:2])
    matching = used & (number(entries[:, :2]) == _TAG)
    value = number(entries[:, 8:10])[tf.argmax(matching)]
    valid = tf.reduce_any(matching) & (value >= 1) & (value <= 8)
    return tf.where(valid, tf.cast(value, tf.int32), UPRIGHT)


def bytes_at(encoded: tf.Tensor, start: tf.Tensor, count: int) -> tf.Tensor:
    """Returns `count` bytes from `start` as int32, padded with zeros at the end of the file."""
    start = tf.clip_by_value(start, 0, tf.strings.length(encoded))
    piece = tf.strings.join([tf.strings.substr(encoded, start, count), bytes(count)])
    piece = tf.io.decode_raw(tf.strings.substr(piece, 0, count), tf.uint8)
    return tf.ensure_shape(tf.cast(piece, tf.int32), (count,))
