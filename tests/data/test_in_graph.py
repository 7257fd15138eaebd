"""What an exported graph reads from encoded images: the pixels of training, and EXIF."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_deeplab.data import in_graph, orientation
from keras_deeplab.data.decoding import read_picture

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)


def encode(kind, mode="RGB", **options):
    file = io.BytesIO()
    image = Image.fromarray(PIXELS)
    if options.get("save_all"):
        options["append_images"] = [image.rotate(90)]
    image.convert(mode).save(file, kind, **options)
    return file.getvalue()


def jpeg(value=None, endian="<", **options):
    if value is not None:
        options["exif"] = Image.Exif()
        options["exif"].endian = endian
        options["exif"][0x010F] = "a maker of cameras"
        options["exif"][0x0112] = value
        options["exif"][0x0131] = "software"
    return encode("JPEG", **options)


@pytest.mark.parametrize(
    "kind, mode, options",
    [
        ("JPEG", "RGB", {}),
        ("JPEG", "L", {"progressive": True}),
        *(("PNG", mode, {}) for mode in ("RGB", "RGBA", "L", "LA", "P", "1")),
        ("WEBP", "RGB", {}),
        ("WEBP", "RGBA", {"lossless": True}),
        *(("BMP", mode, {}) for mode in ("RGB", "RGBA")),
    ],
)
def test_a_graph_decodes_as_training_does(tmp_path, kind, mode, options):
    encoded = encode(kind, mode, **options)
    (tmp_path / "a").write_bytes(encoded)
    for channels in (1, 3):
        pixels = in_graph.decode_image(tf.constant(encoded), channels)
        np.testing.assert_array_equal(pixels, read_picture(tmp_path / "a", channels).pixels)


@pytest.mark.parametrize(
    "encoded",
    [
        *(encode(kind) for kind in ("GIF", "TIFF")),
        *(encode("BMP", mode) for mode in ("P", "1")),
        encode("WEBP", save_all=True),
        *(b"no picture", b"", b"BM"),
    ],
    ids=["gif", "tiff", "palette", "one-bit", "animation", "text", "nothing", "start"],
)
def test_a_graph_names_the_formats_it_takes(encoded):
    with pytest.raises(tf.errors.InvalidArgumentError, match="JPEG, PNG, WebP .* or BMP"):
        in_graph.decode_image(tf.constant(encoded))


@pytest.fixture(scope="module")
def read():
    spec = tf.TensorSpec((), tf.string)
    return tf.function(in_graph.jpeg_orientation, input_signature=[spec])


@pytest.mark.parametrize("endian", ["<", ">"])
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


def test_turned_is_what_numpy_gives():
    turned = tf.function(in_graph.turned)
    for value in range(1, 9):
        pixels = turned(tf.constant(PIXELS), tf.constant(value))
        np.testing.assert_array_equal(pixels, orientation.turned(PIXELS, value))


def test_files_without_exif_are_upright(read):
    for encoded in (jpeg(), encode("PNG"), b"", b"\xff\xd8", b"\xff\xd8\xff\xe1"):
        assert read(encoded) == 1


def test_no_bytes_are_an_error(read):
    rng = np.random.default_rng(0)
    whole, found = jpeg(6), set()
    for number in range(200):
        damaged = bytearray(whole)
        for _ in range(rng.integers(1, 6)):
            damaged[rng.integers(120)] = rng.integers(256)
        tiff = (b"II*\0", b"MM\0*")[number % 2]
        encoded = (
            rng.bytes(rng.integers(400)),
            b"\xff\xd8\xff\xe1" + rng.bytes(2) + b"Exif\0\0" + tiff + rng.bytes(rng.integers(200)),
            bytes(damaged),
            whole[: rng.integers(len(whole))],
        )[number % 4]
        found.add(int(read(encoded)))
    assert {1, 6} <= found <= set(range(1, 9))
