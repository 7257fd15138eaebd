"""Malformed requests raise an error in the graph and never end a server."""

from __future__ import annotations

import json
import pickle
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from export.small import encoded, pictures

from keras_deeplab.export.requests import checked_files, checked_images, declared_pixels


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def declared_png(width, height, first=b""):
    """A PNG of a few bytes that declares a size, with chunks in front of its header."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b""))
    return b"\x89PNG\r\n\x1a\n" + first + header + pixels + chunk(b"IEND", b"")


def declared_jpeg(width, height):
    file = bytearray(encoded(pictures((8, 8, 3)), "JPEG"))
    start = file.index(b"\xff\xc0") + 5
    file[start : start + 4] = struct.pack(">HH", height, width)
    return bytes(file)


def images_request(shape, dtype=np.uint8):
    return "serving_default", {"images": np.zeros(shape, dtype)}


def files_request(*files):
    return "serving_encoded", {"encoded": np.array(files, object)}


PNG, JPEG, BMP = (encoded(pictures((64, 64, 3)), kind) for kind in ("PNG", "JPEG", "BMP"))
WEBP = encoded(np.zeros((1001, 1000, 3), np.uint8), "WEBP", lossless=True)
SHAPE = r"Shape of tensor .* is not compatible with expected shape "
IMAGES, FILES = SHAPE + r"\[\?,\?,\?,3\]", SHAPE + r"\[\?\]"
PIXELS = "images must hold 1 to 1000000 pixels"
DECLARED = "encoded must hold images of up to 1000000 pixels"
DTYPE, DAMAGED = "Type mismatch", "Invalid PNG|jpeg::Uncompress failed|Invalid JPEG data"
NO_FORMAT, KNOWN = "file format|JPEG", "must hold JPEG, PNG, WebP .* or BMP"
IN_FRONT = "begin with their header"
SHAPES = {
    IMAGES: [
        *((), (3,), (40, 50, 3), (1, 1, 8, 8, 3), (1, 40, 50, 0), (1, 40, 50, 4), (1, 3, 40, 50)),
    ],
    PIXELS: [  # empty, large, many, tiny and thin
        *((0, 40, 50, 3), (1, 0, 50, 3), (1, 40, 0, 3), (1, 1100, 1000, 3), (300, 64, 64, 3)),
        *((1000, 1, 1, 3), (1, 1, 40000, 3), (1, 40000, 1, 3)),
    ],
}
MALFORMED = {
    **{f"shape {s}": (images_request(s), rule) for rule, shapes in SHAPES.items() for s in shapes},
    **{dtype: (images_request((1, 8, 9, 3), dtype), DTYPE) for dtype in ("f4", "i4", "?")},
    "files as images": (("serving_default", {"images": np.array([PNG], object)}), DTYPE),
    "missing images": (("serving_default", {}), "must feed a value"),
    "missing files": (("serving_encoded", {}), "must feed a value"),
    "images as files": (("serving_encoded", {"encoded": pictures((1, 8, 8, 3))}), DTYPE),
    "one file": (("serving_encoded", {"encoded": np.array(PNG, object)}), FILES),
    "no files": (files_request(), DECLARED + r".*\[0\]"),
    "empty file": (files_request(b""), KNOWN),
    "text": (files_request(b"no picture"), NO_FORMAT),
    "PNG signature": (files_request(PNG[:8]), IN_FRONT),
    "cut PNG header": (files_request(PNG[:20]), DAMAGED),
    "cut PNG": (files_request(PNG[:900]), DAMAGED),
    "PNG without pixels": (files_request(declared_png(8, 8)), DAMAGED),
    "JPEG start": (files_request(JPEG[:3]), DAMAGED),
    "cut JPEG": (files_request(JPEG[:900]), DAMAGED),
    "JPEG of size 0": (files_request(declared_jpeg(0, 0)), DAMAGED),
    "cut BMP": (files_request(BMP[:900]), "."),
    "TIFF": (files_request(b"II*\0" + bytes(99)), NO_FORMAT),
    "files of two sizes": (
        files_request(PNG, encoded(pictures((8, 9, 3)))),
        r"Incompatible shapes.* \[64,64,3\] vs. \[8,9,3\]",
    ),
    "a good and a bad file": (files_request(PNG, b"no picture"), NO_FORMAT),
    "PNG of 1001x1000": (files_request(declared_png(1001, 1000)), DECLARED),
    "PNG of 2^31 - 1": (files_request(declared_png(2**31 - 1, 2**31 - 1)), DECLARED),
    "PNG of 2^32 - 1": (files_request(declared_png(2**32 - 1, 2**32 - 1)), DECLARED),
    "PNGs together": (files_request(*[declared_png(600, 600)] * 3), DECLARED),
    "PNG with a chunk in front": (
        files_request(declared_png(23000, 23000, chunk(b"abCd", b"x"))),
        IN_FRONT,
    ),
    "JPEG of 65500x65500": (files_request(declared_jpeg(65500, 65500)), DECLARED),
    "WebP of 1000x1001": (files_request(WEBP), DECLARED),
}
VALID = {
    "valid": ("serving_default", {"images": pictures((1, 40, 50, 3))}),
    **{f"{n}x{n}": images_request((1, n, n, 3)) for n in range(1, 9)},
    "thin": images_request((2, 1, 3000, 3)),
    "encoded": files_request(PNG, JPEG),
    "largest image": images_request((1, 992, 992, 3)),
}


@pytest.fixture(scope="module")
def served(exported, tmp_path_factory):
    """The responses of a server in its own process, and its exit status."""
    folder = tmp_path_factory.mktemp("served")
    requests = {**VALID, **{name: request for name, (request, _) in MALFORMED.items()}}
    (folder / "requests").write_bytes(pickle.dumps(requests))
    server = Path(__file__).with_name("serving_session.py")
    command = [sys.executable, server, exported[1], folder / "requests", folder / "responses"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    responses = [json.loads(line) for line in (folder / "responses").read_text().splitlines()]
    return {name: (message, again) for name, message, again in responses}, done


@pytest.mark.slow
def test_no_request_ends_a_server(served):
    responses, done = served
    assert done.returncode == 0, (list(responses)[-1], done.stderr[-2000:])
    assert set(responses) == {*VALID, *MALFORMED}
    assert [name for name, (_, again) in responses.items() if not again] == []
    assert [name for name in VALID if responses[name][0] is not None] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", MALFORMED)
def test_a_server_refuses_malformed_requests(served, name):
    message, _ = served[0][name]
    assert message is not None
    assert re.search(MALFORMED[name][1], message), message


@pytest.mark.parametrize(
    "check, spec",
    [
        (lambda x: checked_images(x, x.shape, 9), tf.TensorSpec((None, None, None, 3))),
        (lambda x: checked_files(x, 9), tf.TensorSpec((None,), tf.string)),
    ],
)
def test_nothing_is_computed_before_the_checks(check, spec):
    """Order in the graph: an assertion beside the network would be too late."""
    run = tf.function(lambda x: tf.stack([check(x)], name="network"))
    graph = run.get_concrete_function(spec).graph
    found, todo = set(), [graph.get_operation_by_name("network").inputs[0].op]
    while todo:
        operation = todo.pop()
        if operation not in found:
            found.add(operation)
            todo += [*operation.control_inputs, *(tensor.op for tensor in operation.inputs)]
    assertions = {op for op in graph.get_operations() if op.type in ("Assert", "If", "StatelessIf")}
    assert assertions
    assert assertions <= found
    assert "EnsureShape" in {op.type for op in found}


@pytest.mark.parametrize(
    "kind, options",
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True, "exif": b"Exif\0\0" + bytes(99)}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"exif": b"Exif\0\0" + bytes(99)}),
    ],
)
def test_sizes_in_headers(kind, options):
    for height, width in ((1, 1), (300, 7), (5, 1021)):
        file = bytearray(encoded(pictures((height, width, 3)), kind, **options))
        above = {b"VP8 ": {27: 64, 29: 64}, b"VP8L": {24: 16}}  # bits of scales, of transparency
        for place, bit in above.get(bytes(file[12:16]), {}).items():
            file[place] |= bit
        assert float(declared_pixels(tf.constant(bytes(file)))) == height * width


@pytest.mark.parametrize("file", [BMP, b"", b"text", b"II*\0", b"RIFF"])
def test_other_files_declare_nothing(file):
    assert float(declared_pixels(tf.constant(file))) == 0


@pytest.mark.parametrize("name", ["serving_default", "serving_encoded"])
def test_an_endpoint_called_from_python_refuses_malformed_requests(exported, name):
    loaded = tf.saved_model.load(str(exported[1]))  # which keeps its variables alive
    entry = getattr(loaded, name)
    good, bad = {
        "serving_default": (pictures((1, 8, 9, 3)), pictures((0, 8, 9, 3))),
        "serving_encoded": (tf.constant([PNG]), tf.constant([], tf.string)),
    }[name]
    with pytest.raises(tf.errors.InvalidArgumentError):
        entry(bad)
    assert entry(good)["labels"].shape[0] == 1
