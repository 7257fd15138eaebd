"""Warm-up requests of TensorFlow Serving, which it runs before it reports a model as ready.

The file is a TFRecord of `PredictionLog` messages of tensorflow-serving-api, a package too large to
depend on. They are written in protobuf's wire format, with the numbers of the fields in
tensorflow_serving/apis/prediction_log.proto, predict.proto and model.proto.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

_PREDICT_LOG, _REQUEST = 6, 1  # of PredictionLog and PredictLog
_MODEL_SPEC, _INPUTS = 1, 2  # of PredictRequest
_SIGNATURE_NAME = 3  # of ModelSpec
_KEY, _VALUE = 1, 2  # of an entry of a map


def write_warmup(path: Path, requests: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Writes one request for each signature, from its inputs by name."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, inputs in requests.items():
            request = _field(_MODEL_SPEC, _field(_SIGNATURE_NAME, signature.encode()))
            for name, value in inputs.items():
                tensor = tf.make_tensor_proto(value).SerializeToString()
                entry = _field(_KEY, name.encode()) + _field(_VALUE, tensor)
                request += _field(_INPUTS, entry)
            writer.write(_field(_PREDICT_LOG, _field(_REQUEST, request)))


def _field(number: int, content: bytes) -> bytes:
    """A field of bytes: its number and kind, the length as a varint, the content."""
    length, size = b"", len(content)
    while size > 127:
        length += bytes([size & 127 | 128])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content
