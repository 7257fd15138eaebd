"""From image files to pixels: for training, the audit and `predict`."""

from __future__ import annotations

import io
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError

import numpy as np
import tensorflow as tf
from PIL import Image, ImageFile

from keras_deeplab.data import jpeg
from keras_deeplab.data.faults import FileFault
from keras_deeplab.data.formats import FORMATS, MAX_PIXELS, PILLOW_ERRORS, format_of
from keras_deeplab.data.in_graph import decode_stored_channels
from keras_deeplab.data.orientation import UPRIGHT, stored_orientation, turned, turned_size
from keras_deeplab.files import special_file

# The largest value of a 12-bit camera, which is almost black in 16 bits.
FEW_BITS = 2**12 - 1
# TIFF tags, the last ones of offsets and byte counts of strips and of tiles.
_BITS_PER_SAMPLE, _COMPRESSION, _PLANAR_CONFIGURATION = 258, 259, 284
_TIFF_DATA = ((273, 279), (324, 325))
_TILE_SIDES = (322, 323)
# Pixels of a tile beyond those of its image, which programs fill up to the tile: to 512x512 as a
# rule, and to 8192x8192 at most.
_TILE_PADDING = 2**26


@dataclass(frozen=True)
class ImageFacts:
    """The stored `(height, width)`, EXIF orientation and largest 16-bit value of an image.

    `is_dark` is whether no value is above a sixteenth of the range in dataset.json, if it has one.
    `difference_hash` is that of `data.difference_hash`, of images that were audited.
    """

    size: tuple[int, int]
    orientation: int = UPRIGHT
    largest: int = 0  # with 8 bits a channel, or a range
    is_dark: bool = False
    difference_hash: bytes = b""

    def orientation_for(self, label_size: tuple[int, int]) -> int:
        """Returns the orientation to apply beside a label map of a size, or raises a FileFault.

        It is that of EXIF, as in annotation tools, unless only the stored size is the label map's.
        """
        upright_size = turned_size(self.size, self.orientation)
        for size, orientation in ((upright_size, self.orientation), (self.size, UPRIGHT)):
            if tuple(label_size) == size:
                return orientation
        found = f"image {_by(self.size)}, label map {_by(label_size)}"
        if upright_size != self.size:
            found += f" (the image is {_by(upright_size)} turned by its EXIF orientation)"
        raise FileFault("sizes differ", found)


@dataclass(frozen=True)
class Picture:
    """A decoded image: stored pixels uint8 `(height, width, channels)`, and its facts."""

    pixels: np.ndarray
    facts: ImageFacts

    @property
    def upright(self) -> np.ndarray:
        """The pixels as viewers display the image."""
        return turned(self.pixels, self.facts.orientation)


def read_picture(path: Path, channels: int = 3, thorough: bool = False) -> Picture:
    """Decodes an image file to 3 channels (RGB) or 1 (grey), or raises a FileFault or an OSError.

    Grey images are repeated, palettes are applied, alpha is dropped, and 16-bit samples keep their
    upper byte.
    """
    check_regular(path)
    return decode_picture(path.read_bytes(), channels, thorough)


def decode_picture(encoded: bytes, channels: int = 3, thorough: bool = False) -> Picture:
    """Decodes the bytes of an image file as `read_picture` does, or raises a FileFault."""
    name, image = open_image(encoded)
    with image:
        orientation = stored_orientation(image, encoded)
        decode = _decoded_by_tensorflow if FORMATS[name].tensorflow else _decoded_by_pillow
        pixels, largest = decode(name, image, encoded, channels)
    if name == "JPEG":
        jpeg.check_whole(encoded, pixels, thorough)
    if name == "TIFF":  # which Pillow has turned: turn it back
        pixels = turned(pixels, {6: 8, 8: 6}.get(orientation, orientation))
    return Picture(pixels, ImageFacts(pixels.shape[:2], orientation, largest))


def check_regular(path: Path) -> None:
    """Raises a FileFault unless a path is a regular file."""
    special = special_file(path)
    if special:
        raise FileFault("not a regular file", special)


def map_array(path: Path) -> np.ndarray:
    """Maps a .npy file into memory, so that an invalid header allocates nothing."""
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except (*PILLOW_ERRORS, TokenError, RecursionError, MemoryError) as error:
        early = "greater than file size" in str(error) or "EOF: " in str(error)
        kind = "truncated file" if early else "unreadable file"
        raise FileFault(kind, f"{path.stat().st_size} bytes, {error}") from error


def open_image(encoded: bytes) -> tuple[str, ImageFile.ImageFile]:
    """Opens an image of one of `FORMATS` without decoding its pixels; returns its format too."""
    unknown = f"{len(encoded)} bytes of an unknown format"
    name = format_of(encoded)
    if name not in FORMATS:
        raise FileFault("unreadable file", f"{name} data" if name else unknown)
    try:
        image = FORMATS[name].plugin(io.BytesIO(encoded))
        pages = getattr(image, "n_frames", 1)
        tile = _tile_pixels(encoded) if name == "TIFF" else 0
    except Image.DecompressionBombError as error:
        raise FileFault("image too large", f"{name} image") from error
    except PILLOW_ERRORS as error:
        if _ends_early(name, encoded):
            text = f"{len(encoded)} bytes, no whole header"
            raise FileFault("truncated file", text) from error
        if "pixel mode" in str(error):  # of a TIFF
            raise FileFault("image of unsupported mode", f"{name} of other bands") from error
        raise FileFault("unreadable file", unknown) from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        found = f"{width}x{height}, {width * height / 1e6:.0f} megapixels"
        raise FileFault("image too large", found)
    if tile > 2 * width * height + _TILE_PADDING:
        found = f"a tile of {tile / 1e6:.0f} megapixels for {width}x{height} pixels"
        raise FileFault("image too large", found, "tiles that are hardly larger than the image")
    if name == "JPEG":
        jpeg.check_scans(encoded)
    if pages > 1:
        raise FileFault("several images in a file", f"{name} of {pages} images")
    return name, image


def _tile_pixels(encoded: bytes) -> int:
    """The pixels of a tile of a TIFF, for which libtiff takes memory; 0 without tiles.

    They are read from the file, as libtiff also knows integers of types that Pillow ignores, and
    takes the first of two entries where older versions of Pillow take the last.
    """
    order, name = ("<", "little") if encoded[:1] == b"I" else (">", "big")
    is_big = b"+" in encoded[2:4]
    head, number, entry = ("8xQ", "Q", "HHQ8s") if is_big else ("4xI", "H", "HHI4s")
    at = struct.unpack_from(order + head, encoded)[0]
    count = struct.unpack_from(order + number, encoded, at)[0]
    at, size = at + struct.calcsize(order + number), struct.calcsize(order + entry)
    end = at + min(count, (len(encoded) - at) // size) * size
    sides = dict.fromkeys(_TILE_SIDES, 0)
    for tag, kind, _, value in struct.iter_unpack(order + entry, encoded[at:end]):
        if tag in sides:
            length = {3: 2, 8: 2, 4: 4, 9: 4, 16: 8, 17: 8}.get(kind, 1)
            if length > len(value):  # elsewhere in the file
                place = int.from_bytes(value, name)
                value = encoded[place : place + length]
            sides[tag] = max(sides[tag], int.from_bytes(value[:length], name))
    return math.prod(sides.values())


def load(name: str, image: ImageFile.ImageFile, encoded: bytes) -> None:
    """Decodes with Pillow; raises a FileFault for a truncated or damaged file."""
    early = _ends_early(name, encoded)
    try:
        image.load()
    except PILLOW_ERRORS as error:
        kind = "truncated file" if early or "truncated" in str(error) else "unreadable file"
        raise FileFault(kind, f"{len(encoded)} bytes, {error}") from error
    if early or _lacks_strips(image, len(encoded)):
        raise FileFault("truncated file", f"{len(encoded)} bytes, the end of the file is missing")


def _lacks_strips(image: ImageFile.ImageFile, size: int) -> bool:
    """Whether a TIFF refers to pixels behind its end, which libtiff fills in for JPEG strips."""
    tags = getattr(image, "tag_v2", {})
    return any(
        offset + count > size
        for offsets, counts in _TIFF_DATA
        for offset, count in zip(tags.get(offsets, ()), tags.get(counts, ()), strict=False)
    )


def _ends_early(name: str, encoded: bytes) -> bool:
    """Whether the end of a file is missing, as far as its format allows to detect it."""
    if name == "JPEG":
        try:
            jpeg.check_whole(encoded)
        except FileFault:
            return True
    if name == "WebP":
        return len(encoded) < 8 + int.from_bytes(encoded[4:8], "little")
    return name == "PNG" and b"IEND\xaeB`\x82" not in encoded


def _decoded_by_tensorflow(
    name: str, image: ImageFile.ImageFile, encoded: bytes, channels: int
) -> tuple[np.ndarray, int]:
    """Returns stored pixels and the largest 16-bit value."""
    try:
        if name == "PNG" and encoded[24] == 16:
            wide = tf.io.decode_png(encoded, channels, tf.uint16).numpy()
            return (wide >> 8).astype(np.uint8), int(wide.max())
        if name == "WebP":
            return decode_stored_channels(encoded, channels).numpy(), 0
        return tf.io.decode_image(encoded, channels, expand_animations=False).numpy(), 0
    except (tf.errors.OpError, ValueError) as error:
        load(name, image, encoded)
        raise _unsupported(name, image) from error


def _decoded_by_pillow(
    name: str, image: ImageFile.ImageFile, encoded: bytes, channels: int
) -> tuple[np.ndarray, int]:
    """Returns pixels as Pillow gives them and the largest 16-bit value."""
    if name == "BMP" and image.mode not in ("RGB", "RGBA", "L"):
        raise _unsupported(name, image)  # an exported model would read the indices of a palette
    tags = image.tag_v2 if name == "TIFF" else {_BITS_PER_SAMPLE: (8,)}
    bits, layout = max(tags.get(_BITS_PER_SAMPLE, (1,))), tags.get(_PLANAR_CONFIGURATION)
    if bits > 8 and (layout, tags.get(_COMPRESSION, 1)) == (2, 1):
        # Pillow takes their bytes for values of 8 bits.
        raise FileFault("image of unsupported mode", f"TIFF of uncompressed planes of {bits} bits")
    load(name, image, encoded)
    largest, narrow = 0, image
    if image.mode.startswith("I;16"):
        wide = np.asarray(image)
        largest, narrow = int(wide.max()), Image.fromarray((wide >> 8).astype(np.uint8))
    elif bits == 16:  # in several channels, whose upper bytes Pillow keeps
        largest = 256 * int(np.asarray(image).max()) + 255
    if narrow.mode.startswith(("I", "F")):  # also all of more than 16 bits
        raise _unsupported(name, image)
    try:
        pixels = np.asarray(narrow.convert("RGB" if channels == 3 else "L"))
    except ValueError as error:
        raise _unsupported(name, image) from error
    return pixels.reshape(*pixels.shape[:2], channels), largest


def _unsupported(name: str, image: ImageFile.ImageFile) -> FileFault:
    return FileFault("image of unsupported mode", f"{name} of mode {image.mode}")


def _by(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"
