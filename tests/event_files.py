"""What TensorBoard reads."""

from __future__ import annotations

from collections import defaultdict

import tensorflow as tf


def events(folder):
    """Everything in a folder's event files: `{tag: {step: value}}`, pictures decoded."""
    found = defaultdict(dict)
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for record in tf.compat.v1.train.summary_iterator(str(path)):
            for value in record.summary.value:
                content = tf.make_ndarray(value.tensor)
                if content.dtype == object:  # width, height and the PNG file
                    _, _, png = content
                    content = tf.io.decode_png(png).numpy()
                found[value.tag][record.step] = content
    return found
