"""Image files: what is read, with which pixels, and what is refused in training and exports."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageFile, ImageOps

from keras_deeplab import data
from keras_deeplab.data import decoding, jpeg
from keras_deeplab.data.decoding import ImageFacts, read_picture
from keras_deeplab.data.faults import FileFault
from keras_deeplab.data.in_graph import decode_image
from keras_deeplab.data.label_maps import read_label
from keras_deeplab.inference import read_image

HEIGHT, WIDTH = 72, 96


def encode(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def photo():
    """Smooth shapes under grain, as photographs have them."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.int64)
    return Image.fromarray((smooth + rng.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8))


@pytest.fixture
def read(tmp_path):
    """Reads the bytes of a file as the audit does."""

    def read(encoded, channels=3, thorough=True):
        (tmp_path / "a.jpg").write_bytes(encoded)
        return read_picture(tmp_path / "a.jpg", channels, thorough)

    return read


def deep(photo, factor):
    return Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * factor)


# Whole pictures.


LOSSLESS = [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True}), ("TIFF", {})]
LOSSLESS += [("TIFF", {"compression": "tiff_lzw"}), ("TIFF", {"compression": "tiff_adobe_deflate"})]


@pytest.mark.parametrize(
    "mode, channels", [("RGB", 3), ("RGB", 1), ("RGBA", 3), ("L", 3), ("L", 1)]
)
@pytest.mark.parametrize("kind, options", LOSSLESS)
def test_lossless_formats_give_the_pixels(read, photo, kind, options, mode, channels):
    image = photo.convert(mode)
    if mode == "RGBA":
        image.putalpha(128)
    pixels = read(encode(image, kind, **options), channels).pixels
    shown = image.convert("RGB").convert("RGB" if channels == 3 else "L")
    assert pixels.dtype == np.uint8
    difference = np.abs(pixels.astype(int) - np.asarray(shown).reshape(HEIGHT, WIDTH, channels))
    # libpng weighs the channels by another standard.
    assert difference.max() <= (20 if kind == "PNG" and channels == 1 and mode != "L" else 0)


@pytest.mark.parametrize("kind, mode", [("PNG", "LA"), ("PNG", "P"), ("PNG", "1"), ("JPEG", "1")])
def test_grey_images_of_every_mode_become_rgb(read, kind, mode):
    grey = np.kron(np.random.default_rng(0).integers(0, 2, (3, 4)) * 255, np.ones((8, 8)))
    image = Image.fromarray(grey.astype(np.uint8)).convert(mode)
    pixels = read(encode(image, kind, quality=100)).pixels
    np.testing.assert_allclose(pixels, np.repeat(grey[..., None], 3, -1), atol=3)


@pytest.mark.parametrize("options", [{}, {"progressive": True, "subsampling": 0}])
def test_jpeg_pixels_are_those_of_tensorflow(read, photo, options):
    """Models were trained on these; Pillow's differ by many grey levels."""
    encoded = encode(photo, "JPEG", quality=90, **options)
    np.testing.assert_array_equal(read(encoded).pixels, tf.io.decode_jpeg(encoded, channels=3))


@pytest.mark.parametrize(
    "kind, mode, message",
    [
        ("GIF", "RGB", "GIF data"),
        ("JPEG2000", "RGB", "JPEG 2000 data"),
        *((kind, "RGB", f"{kind} of 2 images") for kind in ("WebP", "TIFF", "PNG")),
        *(("BMP", mode, "image of unsupported mode: BMP of mode") for mode in ("P", "1")),
    ],
)
def test_other_formats_and_several_images_are_named(read, photo, kind, mode, message):
    more = {"save_all": True, "append_images": [photo.rotate(90)]} if "2 im" in message else {}
    with pytest.raises(FileFault, match=message):
        read(encode(photo.convert(mode), kind, **more))


@pytest.mark.parametrize("channels, dtype", [(3, "<u2"), (4, "<u2"), (3, "u1")])
def test_planes_of_16_bits_are_not_taken_for_8(read, channels, dtype):
    rng = np.random.default_rng(0)
    planes = rng.integers(0, 2**16, (channels, 8, 12)).astype(dtype)
    if dtype == "u1":
        found = read(tiff_of_planes(planes)).pixels
        np.testing.assert_array_equal(found, np.moveaxis(planes, 0, -1))
        return
    with pytest.raises(FileFault, match="TIFF of uncompressed planes of 16 bits"):
        read(tiff_of_planes(planes))


def test_a_tiff_of_more_bands_leads_to_dataset_json(read):
    with pytest.raises(
        FileFault, match='TIFF of other bands.*"channels" or "range" in dataset.json'
    ):
        read(tiff_of_planes(np.zeros((5, 8, 12), "u1")))


def tiff_of_planes(planes):
    """An uncompressed TIFF with one plane after the other."""
    count, height, width = planes.shape
    start, more, size = 8 + planes.nbytes, b"", planes[0].nbytes
    tags = {256: width, 257: height, 258: [planes.itemsize * 8] * count, 259: 1, 262: 2}
    tags |= {273: [8 + size * k for k in range(count)], 277: count, 278: height}
    tags |= {279: [size] * count, 284: 2} | ({338: 0} if count == 4 else {})
    entries = b""
    for tag, value in tags.items():
        many = isinstance(value, list)
        if many:  # behind the entries
            at = start + 2 + 12 * len(tags) + 4 + len(more)
            more, value = more + struct.pack(f"<{count}I", *value), at
        entries += struct.pack("<HHII", tag, 4, count if many else 1, value)
    head = struct.pack("<2sHI", b"II", 42, start)
    return head + planes.tobytes() + struct.pack("<H", len(tags)) + entries + bytes(4) + more


LONG, LONG8, SLONG8 = 4, 16, 17  # of which Pillow does not know the last


@pytest.mark.parametrize("kind", [LONG, LONG8, SLONG8])
@pytest.mark.parametrize("first", [[], [(322, LONG, 16), (323, LONG, 16)]], ids=["", "twice"])
def test_tiles_far_larger_than_their_image_take_no_memory(read, kind, first):
    """libtiff takes memory for a whole tile, and a small file may unpack to gigabytes."""
    for sides in ((2**15, 2**15), (2**26 + 2**10, 1)):
        with pytest.raises(FileFault, match="image too large: a tile of .* for 12x8 pixels"):
            read(tiled_tiff(sides, kind, first))
    if not first:
        twice = [(322, LONG, 2**15), (323, LONG, 2**15)]
        with pytest.raises(FileFault, match="image too large: a tile of .* for 12x8 pixels"):
            read(tiled_tiff((16, 16), kind, twice))
        pixels = read(tiled_tiff((256, 512), kind)).pixels
        np.testing.assert_array_equal(pixels[..., 0], np.arange(8)[:, None] + np.arange(12))


def tiled_tiff(sides, kind, first=()):
    """A grey TIFF of 12x8 pixels in one tile, whose sides are integers of a kind."""
    width, height = sides
    pixels = np.add.outer(np.arange(min(height, 8)), np.arange(min(width, 2**9))).astype(np.uint8)
    whole = height * width < 2**20
    coded = zlib.compress(np.pad(pixels, ((0, height - len(pixels)), (0, 0)))) if whole else b""
    tags = [(256, LONG, 12), (257, LONG, 8), (258, LONG, 8), (259, LONG, 8), (262, LONG, 1)]
    tags += [*first, (322, kind, width), (323, kind, height), (324, LONG, 400)]
    tags += [(325, LONG, len(coded))]
    entries, more, end = b"", b"", 8 + 2 + 12 * len(tags) + 4
    for tag, kind_of, value in tags:
        if kind_of > LONG:  # of 8 bytes, behind the entries
            more, value = more + struct.pack("<Q", value), end + len(more)
        entries += struct.pack("<HHII", tag, kind_of, 1, value)
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + more
    return head.ljust(400, b"\0") + coded


def test_one_list_of_formats():
    assert " ".join(data.IMAGE_SUFFIXES) == ".jpg .jpeg .jfif .png .bmp .webp .tif .tiff"
    with pytest.raises(ValueError, match="JPEG, PNG, BMP, WebP or TIFF file"):
        read_image(__file__)


# Files that are not whole.


DAMAGED = "truncated file|unreadable file"
JPEGS = {
    "baseline": {},
    "optimized": {"optimize": True},
    "progressive": {"progressive": True},
    "fine": {"quality": 100, "subsampling": 0},
    "restarts": {"restart_marker_rows": 1},
}


@pytest.mark.parametrize("end", [b"", b"\xff\xd9"], ids=["", "end"])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(
    "mode, kind", [*(("RGB", kind) for kind in JPEGS), ("L", "baseline"), ("CMYK", "baseline")]
)
def test_half_a_jpeg_is_a_fault(read, photo, mode, kind, zeros, end):
    encoded = encode(photo.convert(mode), "JPEG", **JPEGS[kind])
    assert read(encoded).facts.size == (HEIGHT, WIDTH)
    start = encoded.index(b"\xff\xda") + 14
    for share in (0.1, 0.5, 0.8):
        cut = start + int(share * (len(encoded) - start))
        damaged = encoded[:cut] + bytes(len(encoded) - cut - len(end)) * zeros + end
        # The finest details of progressive files are looked for by the audit alone.
        audit_alone = kind == "progressive" and end and share == 0.8
        for thorough in (True,) if audit_alone else (True, False):
            with pytest.raises(FileFault, match=DAMAGED):
                read(damaged, thorough=thorough)


@pytest.mark.parametrize("size", [(1, 1), (65, 33), (320, 240)])
@pytest.mark.parametrize("options", JPEGS.values(), ids=JPEGS)
def test_flat_jpegs_are_whole(read, photo, options, size):
    """Their coded data may be zeros, and their last pixel the grey of missing data."""
    for color in ((0, 0, 0), (128, 128, 128), (200, 30, 30)):
        image = Image.new("RGB", size, color)
        for _ in range(2):
            assert read(encode(image, "JPEG", **options)).facts.size == size[::-1]
            image.paste(photo.resize((20, 20)), (0, 0))


def test_bytes_behind_the_end_are_allowed(read, photo):
    encoded = encode(photo, "JPEG")
    several = encode(photo, "MPO", save_all=True, append_images=[photo.rotate(90)])
    for file in (encoded + b"\0" * 5000, encoded + encode(photo.rotate(9), "JPEG"), several):
        np.testing.assert_array_equal(read(file).pixels, tf.io.decode_jpeg(encoded))


def test_a_thumbnail_does_not_end_its_jpeg(photo):
    thumbnail = encode(photo.resize((32, 24)), "JPEG")
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2) + thumbnail
    encoded = encode(photo, "JPEG")
    encoded = encoded[:2] + segment + encoded[2:]
    jpeg.check_whole(encoded)
    with pytest.raises(FileFault):
        jpeg.check_whole(encoded[: len(thumbnail) + 400])


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_scans_are_counted_before_an_image_is_decoded(read, photo, options, monkeypatch):
    """Each takes the time of a pass over the image, and only a few bytes of the file."""
    encoded = encode(photo, "JPEG", **options)
    scan = encoded[encoded.rindex(b"\xff\xda") : -2]
    many = encoded[:-2] + 101 * scan
    segment = b"\xff\xe1" + (2 + 2 * 200).to_bytes(2) + 200 * b"\xff\xda"
    other = encoded[:2] + segment + encoded[2:] + many  # not of the image
    np.testing.assert_array_equal(read(other).pixels, tf.io.decode_jpeg(encoded))
    monkeypatch.setattr(decoding, "_decoded_by_tensorflow", None)
    for end in (b"\xff\xd9", b""):
        with pytest.raises(FileFault, match="unreadable file: .* JPEG of more than 100 scans"):
            read(many + end)


def test_a_few_scans_with_zeros_are_tested(read, photo, monkeypatch):
    encoded, decoded, pictures = encode(photo, "JPEG", progressive=True), jpeg._decoded, []
    monkeypatch.setattr(jpeg, "_ZEROS", b"")  # which all ten scans have
    monkeypatch.setattr(jpeg, "_TESTED_SCANS", 2)
    monkeypatch.setattr(jpeg, "_decoded", lambda e: pictures.append(e) or decoded(e))
    assert read(encoded, thorough=False).facts.size == (HEIGHT, WIDTH)
    assert pictures.count(encoded) == 1
    assert 1 + 2 * 2 <= len(pictures) <= 1 + 2 * 3


@pytest.mark.parametrize("kind, options", [*LOSSLESS, ("WEBP", {}), ("JPEG", {})])
def test_cut_files_of_every_format(read, photo, kind, options):
    encoded = encode(photo, kind, **options)
    for cut in (1, 12, 300, 2000):
        with pytest.raises(FileFault, match=DAMAGED):
            read(encoded[:-cut], thorough=False)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "TIFF"])
def test_random_damage_is_a_fault_or_a_picture(read, photo, kind):
    rng = np.random.default_rng(0)
    whole, faults = encode(photo, kind), 0
    for _ in range(60):
        encoded = bytearray(whole)
        for _ in range(rng.integers(1, 6)):
            encoded[rng.integers(min(300, len(encoded)))] = rng.integers(256)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of damaged EXIF
            try:
                assert read(encoded).pixels.ndim == 3
            except FileFault:
                faults += 1
    assert faults > 5


def test_fields_of_a_scan_that_decoders_pass_over_do_not_matter(read, photo):
    encoded = bytearray(encode(photo, "JPEG"))
    start = encoded.index(b"\xff\xda")
    last = start + 4 + encoded[start + 4] * 2 + 2  # the last coefficient, 63
    assert encoded[last] == 63
    encoded[last] = 0
    expected = tf.io.decode_jpeg(encode(photo, "JPEG"))
    np.testing.assert_array_equal(read(encoded).pixels, expected)
    cut = bytes(encoded[: len(encoded) // 2])
    with pytest.raises(FileFault, match="truncated"):
        read(cut + bytes(len(cut) - 2) + b"\xff\xd9")


def test_settings_of_pillow_do_not_matter(read, photo, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(FileFault, match="truncated file"):
        read(encode(photo, "TIFF")[:-3000])


# 16 bits.


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_images_of_few_values(tmp_path, write_pair, photo, kind):
    label = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 2
    path, _ = write_pair(tmp_path, "train", "a", label)
    path.write_bytes(encode(deep(photo, 16), kind))
    largest = 16 * int(np.asarray(photo.convert("L")).max())
    message = f"train: 1 images have 16 bits a channel, the largest value is {largest}"
    with pytest.raises(data.DatasetError, match=f'(?s)"range": .*{message}'):
        data.audit(tmp_path)
    with pytest.warns(UserWarning, match=f"no value above {largest}: almost black"):
        read_image(path)
    path, _ = write_pair(tmp_path, "train", "b", label)
    path.write_bytes(encode(deep(photo, 257), kind))
    (warning,) = data.audit(tmp_path).warnings  # "a" is a dark one of a camera of 16 bits
    assert "2 images have 16 bits a channel; 1 of them have no value above 4095" in warning
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(read_image(path, 1)[..., 0], photo.convert("L"))
        path.write_bytes(encode(deep(photo, 0), kind))  # black has no few values
        assert read_image(path).max() == 0


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_16_bits_in_several_channels(read, channels):
    values = np.random.default_rng(0).integers(0, 2**16, (9, 7, channels)).astype(np.uint16)
    encoded = tf.io.encode_png(values).numpy()
    picture = read(encoded)
    assert picture.facts.largest == values[..., : 1 if channels == 2 else 3].max()
    if channels == 3:
        np.testing.assert_array_equal(picture.pixels, values >> 8)
    np.testing.assert_array_equal(decode_image(tf.constant(encoded)), picture.pixels)


# EXIF orientation.


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
def test_orientation_is_that_of_viewers(read, photo, kind, orientation):
    encoded = encode(photo, kind, exif=exif(orientation))
    stored = tf.io.decode_jpeg(encoded).numpy() if kind == "JPEG" else np.asarray(photo)
    marked = Image.fromarray(stored)
    marked.getexif()[0x0112] = orientation
    picture = read(encoded)
    assert picture.facts == ImageFacts((HEIGHT, WIDTH), orientation)
    np.testing.assert_array_equal(picture.pixels, stored)
    np.testing.assert_array_equal(picture.upright, ImageOps.exif_transpose(marked))


def test_an_orientation_in_xmp_is_none(read, photo):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" '
    encoded = encode(photo, "JPEG", xmp=xmp + b'tiff:Orientation="6"/>')
    with Image.open(io.BytesIO(encoded)) as image:
        assert image.getexif().get(0x0112) == 6
    assert read(encoded).facts.orientation == 1


@pytest.mark.parametrize(
    "kind, orientation, size, label_size, turned, warning",
    [
        *((kind, 6, (24, 32), (32, 24), True, "are turned by their") for kind in ("JPEG", "TIFF")),
        *((kind, 6, (24, 32), (24, 32), False, "are used as stored") for kind in ("PNG", "TIFF")),
        ("WEBP", 8, (32, 32), (32, 32), True, "are turned by their"),
        ("JPEG", 3, (24, 32), (24, 32), True, "are turned by their"),
        ("JPEG", 1, (24, 32), (24, 32), False, None),
    ],
)
def test_images_lie_as_their_label_maps(
    make_folder, photo, kind, orientation, size, label_size, turned, warning
):
    root = make_folder(np.arange(np.prod(label_size)).reshape(label_size) % 2)
    path = root / "train/images/a.png"
    path.write_bytes(encode(photo.resize(size[::-1]), kind, exif=exif(orientation)))
    picture = read_picture(path)
    ((image, _),) = data.Folder(root).dataset("train").as_numpy_iterator()
    np.testing.assert_array_equal(image, picture.upright if turned else picture.pixels)
    assert not np.array_equal(picture.upright, picture.pixels) or orientation == 1
    found = data.audit(root).warnings
    assert len(found) == (warning is not None)
    assert warning is None or found[0].startswith(f"train: 1 images {warning}")


def test_sizes_that_no_orientation_explains():
    message = r"image 32x24, label map 30x30 \(the image is 24x32 turned by its EXIF orientation\)"
    with pytest.raises(FileFault, match=message):
        ImageFacts((24, 32), orientation=6).orientation_for((30, 30))


# Files that are none, and images too large.


@pytest.mark.parametrize("kind", ["a named pipe", "a device", "a link to nothing", "a folder"])
def test_only_regular_files_are_opened(tmp_path, kind):
    path = tmp_path / "a.png"
    {
        "a named pipe": lambda: os.mkfifo(path),
        "a device": lambda: path.symlink_to("/dev/zero"),
        "a link to nothing": lambda: path.symlink_to(path.parent / "nothing"),
        "a folder": path.mkdir,
    }[kind]()
    for use in (read_picture, read_label):
        with pytest.raises(FileFault, match=f"not a regular file: {kind}"):
            use(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "TIFF"])
def test_large_images(tmp_path, photo, monkeypatch, kind):
    """Images are read beyond Pillow's limit for warnings, up to that for errors."""
    path, pixels = tmp_path / "a", HEIGHT * WIDTH
    path.write_bytes(encode(photo, kind))
    for warn, limit in ((0.7, 1.4), (0.4, 0.8)):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(warn * pixels))
        monkeypatch.setattr(decoding, "MAX_PIXELS", int(limit * pixels))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore" if kind == "TIFF" else "error")
            if limit > 1:
                assert read_picture(path, thorough=True).facts.size == (HEIGHT, WIDTH)
                continue
            for use in (read_picture, read_label):
                with pytest.raises(FileFault, match="too large: (96x72, 0 mega|(TIFF|WebP) image)"):
                    use(path)
