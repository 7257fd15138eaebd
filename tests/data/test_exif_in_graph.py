from __future__ import annotations

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_deeplab.data import exif_in_graph, orientation

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
ENTRIES = {"<": b"II*\0", ">": b"MM\0*"}


@pytest.fixture(scope="module")
def read():
    spec = tf.TensorSpec((), tf.string)
    return tf.function(exif_in_graph.jpeg_orientation, input_signature=[spec])


def jpeg(value=None, endian="<", **options):
    if value is not None:
        options["exif"] = Image.Exif()
        options["exif"].endian = endian
        options["exif"][0x010F] = "a maker of cameras"
        options["exif"][0x0112] = value
        options["exif"][0x0131] = "software"
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "JPEG", **options)
    return file.getvalue()


@pytest.mark.parametrize("endian", ENTRIES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"icc_profile": bytes(70000)},
        {"comment": b"x" * 3000},
        {"xmp": b"<x/>" * 100},
        {"progressive": True},
    ],
)
def test_orientations_are_read_wherever_they_stand(read, endian, options):
    assert [read(jpeg(value, endian, **options)) for value in range(1, 9)] == list(range(1, 9))
    assert [read(jpeg(value, endian, **options)) for value in (0, 9, 300)] == [1, 1, 1]


@pytest.mark.parametrize("value", range(1, 9))
def test_turned_is_what_numpy_gives(value):
    turned = tf.function(exif_in_graph.turned)(tf.constant(PIXELS), tf.constant(value))
    np.testing.assert_array_equal(turned, orientation.turned(PIXELS, value))


def test_files_without_exif_are_upright(read):
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG")
    for encoded in (jpeg(), file.getvalue(), b"", b"\xff\xd8", b"\xff\xd8\xff\xe1"):
        assert read(encoded) == 1


def test_no_bytes_are_an_error(read):
    rng = np.random.default_rng(0)
    whole, found = jpeg(6), set()
    for number in range(800):
        damaged = bytearray(whole)
        for _ in range(rng.integers(1, 6)):
            damaged[rng.integers(120)] = rng.integers(256)
        tiff = list(ENTRIES.values())[number % 2]
        encoded = (
            rng.bytes(rng.integers(400)),
            b"\xff\xd8\xff\xe1" + rng.bytes(2) + b"Exif\0\0" + tiff + rng.bytes(rng.integers(200)),
            bytes(damaged),
            whole[: rng.integers(len(whole))],
        )[number % 4]
        found.add(int(read(encoded)))
    assert {1, 6} <= found <= set(range(1, 9))
