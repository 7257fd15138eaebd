"""A server of an exported model: it feeds requests to the graph as they are, without a check.

`python serving_session.py SAVED_MODEL REQUESTS ANSWERS`: `REQUESTS` is a pickle of
`{name: (signature, {input: array})}`, of which the one named `valid` is sent again after each other
one. `ANSWERS` becomes a line of JSON for each, as soon as it is there: its name, the error message
or None, and whether the valid request was answered as at the start.
"""

from __future__ import annotations

import functools
import json
import pickle
import sys
from pathlib import Path

sys.modules["keras"] = sys.modules["keras_deeplab"] = None  # serving needs only TensorFlow

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from tensorflow.core.protobuf import config_pb2  # noqa: E402

saved_model, requests, responses = map(Path, sys.argv[1:])
session = tf.compat.v1.Session(graph=tf.Graph())
with session.graph.as_default():
    meta = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(saved_model))


@functools.cache
def endpoint(name, inputs):
    """A callable of a signature. `Session.run` would hold the shapes against the signature."""
    signature = meta.signature_def[name]
    feed = [signature.inputs[key].name or f"{key}:0" for key in inputs]
    fetch = [signature.outputs[key].name or f"{key}:0" for key in ("labels", "probabilities")]
    options = config_pb2.CallableOptions(feed=feed, fetch=fetch)
    return session._make_callable_from_options(options)


def answer(name, inputs):
    return endpoint(name, tuple(inputs))(*inputs.values())


requests = pickle.loads(requests.read_bytes())
valid = answer(*requests["valid"])
with responses.open("w") as file:
    for name, request in requests.items():
        message = None
        try:
            answer(*request)
        except tf.errors.OpError as error:
            message = error.message
        again = all(map(np.array_equal, answer(*requests["valid"]), valid))
        print(json.dumps([name, message, again]), file=file, flush=True)
