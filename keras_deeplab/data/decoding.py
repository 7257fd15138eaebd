"""From image files to pixels: for training, the audit and `predict`."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image, ImageFile

from keras_deeplab.data import jpeg
from keras_deeplab.data.faults import FileFault
from keras_deeplab.data.formats import (
    MAX_PIXELS,
    PILLOW_ERRORS,
    Format,
    foreign_name,
    format_of,
)
from keras_deeplab.data.in_graph import decode_stored_channels
from keras_deeplab.data.orientation import (
    UPRIGHT,
    stored_orientation,
    turned,
    turned_size,
)
from keras_deeplab.files import special_file

# The largest value of a 12-bit camera, which is almost black in 16 bits.
FEW_BITS = 2**12 - 1
# TIFF tags: bits per sample; offsets and byte counts of strips and of tiles.
_BITS_PER_SAMPLE = 258
_TIFF_DATA = ((273, 279), (324, 325))
_pillow_filters = threading.Lock()


@dataclass(frozen=True)
class ImageFacts:
    """The stored `(height, width)`, EXIF orientation and depth of an image."""

    size: tuple[int, int]
    orientation: int = UPRIGHT
    bits: int = 8
    largest: int = 0  # value of 16-bit channels

    @property
    def upright_size(self) -> tuple[int, int]:
        """The size as viewers display the image, with its EXIF orientation applied."""
        return turned_size(self.size, self.orientation)

    def orientation_for(self, label_size: tuple[int, int]) -> int:
        """Returns the orientation to apply beside a label map of a size, or raises a FileFault.

        It is that of EXIF, as in annotation tools, unless only the stored size is the label map's.
        """
        for size, orientation in ((self.upright_size, self.orientation), (self.size, UPRIGHT)):
            if tuple(label_size) == size:
                return orientation
        found = f"image {_by(self.size)}, label map {_by(label_size)}"
        if self.upright_size != self.size:
            found += f" (the image is {_by(self.upright_size)} turned by its EXIF orientation)"
        raise FileFault("sizes differ", found)


@dataclass(frozen=True)
class Picture:
    """A decoded image: stored pixels uint8 `(height, width, channels)`, and its facts."""

    pixels: np.ndarray
    facts: ImageFacts

    def beside(self, label_size: tuple[int, int]) -> np.ndarray:
        """Returns the pixels for a label map of a size; see `orientation_for`."""
        return turned(self.pixels, self.facts.orientation_for(label_size))

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
    encoded = path.read_bytes()
    kind, image = open_image(encoded)
    with image:
        orientation = stored_orientation(image, encoded)
        size = turned_size(image.size[::-1], orientation if kind.name == "TIFF" else UPRIGHT)
        decode = _decoded_by_tensorflow if kind.tensorflow else _decoded_by_pillow
        pixels, bits, largest = decode(kind, image, encoded, channels)
    if kind.name == "JPEG":
        try:
            jpeg.check_whole(encoded, pixels, thorough)
        except jpeg.EarlyEnd as error:
            raise FileFault("truncated file", f"{len(encoded)} bytes, {error}") from error
    if kind.name == "TIFF":  # which Pillow has turned: turn it back
        pixels = turned(pixels, {6: 8, 8: 6}.get(orientation, orientation))
    return Picture(pixels, ImageFacts(size, orientation, bits, largest))


def image_facts(path: Path) -> ImageFacts:
    """Decodes an image file as in training and returns its facts, or raises a FileFault."""
    return read_picture(path, thorough=True).facts


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Turns errors of a file in the block into a ValueError with its path."""
    try:
        yield
    except (FileFault, OSError) as error:
        raise ValueError(f"{path}: {error}") from error


def check_regular(path: Path) -> None:
    """Raises a FileFault unless a path is a regular file."""
    special = special_file(path)
    if special:
        raise FileFault("not a regular file", special)


def open_image(encoded: bytes) -> tuple[Format, ImageFile.ImageFile]:
    """Opens an image of a supported format without decoding its pixels."""
    unknown = f"{len(encoded)} bytes of an unknown format"
    kind = format_of(encoded[:16])
    if kind is None:
        name = foreign_name(encoded[:16])
        raise FileFault("unreadable file", f"{name} data" if name else unknown)
    try:
        image = kind.plugin(io.BytesIO(encoded))
        pages = getattr(image, "n_frames", 1)
    except Image.DecompressionBombError as error:
        raise FileFault("image too large", f"{kind.name} image") from error
    except PILLOW_ERRORS as error:
        if ends_early(encoded):
            text = f"{len(encoded)} bytes, no whole header"
            raise FileFault("truncated file", text) from error
        raise FileFault("unreadable file", unknown) from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        found = f"{width}x{height}, {width * height / 1e6:.0f} megapixels"
        raise FileFault("image too large", found)
    if pages > 1:
        raise FileFault("several images in a file", f"{kind.name} of {pages} images")
    return kind, image


def load(image: ImageFile.ImageFile, encoded: bytes) -> None:
    """Decodes with Pillow; raises a FileFault for a truncated or damaged file."""
    try:
        if image.width * image.height > MAX_PIXELS // 2:
            # The size is already checked; Pillow warns about TIFF files above half the limit.
            with _pillow_filters, warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                image.load()
        image.load()
    except PILLOW_ERRORS as error:
        early = ends_early(encoded) or "truncated" in str(error)
        kind = "truncated file" if early else "unreadable file"
        raise FileFault(kind, f"{len(encoded)} bytes, {error}") from error
    if ends_early(encoded) or _lacks_strips(image, len(encoded)):
        raise FileFault("truncated file", f"{len(encoded)} bytes, the end of the file is missing")


def _lacks_strips(image: ImageFile.ImageFile, size: int) -> bool:
    """Whether a TIFF refers to pixels behind its end, which libtiff fills in for JPEG strips."""
    tags = getattr(image, "tag_v2", {})
    return any(
        offset + count > size
        for offsets, counts in _TIFF_DATA
        for offset, count in zip(tags.get(offsets, ()), tags.get(counts, ()), strict=False)
    )


def ends_early(encoded: bytes) -> bool:
    """Whether the end of a file is missing, as far as its format allows to detect it."""
    kind = format_of(encoded[:16])
    name = kind.name if kind else ""
    if name == "JPEG":
        try:
            jpeg.check_whole(encoded)
        except jpeg.EarlyEnd:
            return True
    if name == "WebP":
        return len(encoded) < 8 + int.from_bytes(encoded[4:8], "little")
    return name == "PNG" and b"IEND\xaeB`\x82" not in encoded


def _decoded_by_tensorflow(
    kind: Format, image: ImageFile.ImageFile, encoded: bytes, channels: int
) -> tuple[np.ndarray, int, int]:
    """Returns stored pixels, bits per channel and the largest 16-bit value."""
    bits, largest = 8, 0
    try:
        if kind.name == "PNG" and encoded[24] == 16:
            wide = tf.io.decode_png(encoded, channels, tf.uint16).numpy()
            bits, largest, pixels = 16, int(wide.max()), (wide >> 8).astype(np.uint8)
        elif kind.name == "WebP":
            pixels = decode_stored_channels(encoded, channels).numpy()
        else:
            pixels = tf.io.decode_image(encoded, channels, expand_animations=False).numpy()
    except (tf.errors.OpError, ValueError) as error:
        load(image, encoded)
        raise _unsupported(kind, image) from error
    return pixels, bits, largest


def _decoded_by_pillow(
    kind: Format, image: ImageFile.ImageFile, encoded: bytes, channels: int
) -> tuple[np.ndarray, int, int]:
    """Returns pixels as Pillow gives them, bits per channel and the largest 16-bit value."""
    if kind.name == "BMP" and image.mode not in ("RGB", "RGBA", "L"):
        raise _unsupported(kind, image)  # an exported model would read the indices of a palette
    bits = max(image.tag_v2.get(_BITS_PER_SAMPLE, (1,))) if kind.name == "TIFF" else 8
    load(image, encoded)
    largest, narrow = 0, image
    if image.mode.startswith("I;16"):
        wide = np.asarray(image)
        largest, narrow = int(wide.max()), Image.fromarray((wide >> 8).astype(np.uint8))
    elif bits == 16:  # in several channels, whose upper bytes Pillow keeps
        largest = 256 * int(np.asarray(image).max()) + 255
    if bits > 16 or narrow.mode.startswith(("I", "F")):
        raise _unsupported(kind, image)
    try:
        pixels = np.asarray(narrow.convert("RGB" if channels == 3 else "L"))
    except ValueError as error:
        raise _unsupported(kind, image) from error
    return pixels.reshape(*pixels.shape[:2], channels), bits, largest


def _unsupported(kind: Format, image: ImageFile.ImageFile) -> FileFault:
    return FileFault("image of unsupported mode", f"{kind.name} of mode {image.mode}")


def _by(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"
