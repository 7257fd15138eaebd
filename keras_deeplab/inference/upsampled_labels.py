"""The class of every pixel from coarse logits, without the logits at full size in memory."""

from __future__ import annotations

import tensorflow as tf

from keras_deeplab.layers.resize import bilinear

ROWS = 128  # of the labels that are computed at a time


def upsampled_labels(
    logits: tf.Tensor, size: tf.Tensor, align_corners: bool, dtype: tf.DType
) -> tf.Tensor:
    """Returns the argmax of logits `(batch, height, width, num_classes)` resized to a size.

    The columns are interpolated first and the rows then strip by strip, in the order and with the
    formulas of TensorFlow's kernel, so that the labels are those of the whole resized map.
    """
    known = tf.shape(logits)[1]
    rows, height = tf.cast(known, tf.float32), tf.cast(size[0], tf.float32)

    def labels(image: tf.Tensor) -> tf.Tensor:
        columns = bilinear(image[None], [known, size[1]], align_corners)[0]

        def strip(first: tf.Tensor) -> tf.Tensor:
            row = tf.cast(tf.minimum(first + tf.range(ROWS), size[0] - 1), tf.float32)
            if align_corners:
                place = row * ((rows - 1) / tf.maximum(height - 1, 1))
            else:
                place = (row + 0.5) * (rows / height) - 0.5
            before = tf.floor(place)
            upper = tf.cast(tf.maximum(before, 0), tf.int32)
            lower = tf.cast(tf.minimum(before + 1, rows - 1), tf.int32)
            top, bottom = (tf.gather(columns, index) for index in (upper, lower))
            values = top + (bottom - top) * (place - before)[:, None, None]
            return tf.cast(tf.argmax(values, -1, output_type=tf.int32), dtype)

        starts = tf.range(0, size[0], ROWS)
        strips = tf.map_fn(strip, starts, fn_output_signature=dtype, parallel_iterations=1)
        return tf.reshape(strips, (-1, size[1]))[: size[0]]

    return tf.map_fn(
        labels,
        logits,
        fn_output_signature=tf.TensorSpec((None, None), dtype),
        parallel_iterations=1,
    )
