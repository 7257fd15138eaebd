"""The supported image formats, for training, the audit, `predict` and exports."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from PIL import (
    BmpImagePlugin,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

# Pillow refuses larger images, and warns from half of it.
MAX_PIXELS = 178_956_970
# Errors of Pillow for damaged files.
PILLOW_ERRORS = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError)
PILLOW_ERRORS += (EOFError, struct.error)
# Weights of red, green and blue in grey, as Pillow computes it: the sum, rounded, by 65,536.
LUMA = (19595, 38470, 7471)


@dataclass(frozen=True)
class Format:
    """A format of image files."""

    suffixes: tuple[str, ...]
    # Called directly, Pillow's reader tries no other formats, does not warn about sizes, and reads
    # the first of several pictures in a phone's JPEG (MPO).
    plugin: type[ImageFile.ImageFile]
    # Whether TensorFlow decodes it, in Python and in exported graphs. For JPEG, Pillow differs by
    # up to 21 grey levels (another inverse DCT).
    tensorflow: bool = False
    label_maps: bool = False


FORMATS = {
    "JPEG": Format((".jpg", ".jpeg", ".jfif"), JpegImagePlugin.JpegImageFile, tensorflow=True),
    "PNG": Format((".png",), PngImagePlugin.PngImageFile, tensorflow=True, label_maps=True),
    # TensorFlow reads BMP too, but with the indices of a palette as grey values.
    "BMP": Format((".bmp",), BmpImagePlugin.BmpImageFile, label_maps=True),
    "WebP": Format((".webp",), WebPImagePlugin.WebPImageFile, tensorflow=True),
    "TIFF": Format((".tif", ".tiff"), TiffImagePlugin.TiffImageFile, label_maps=True),
}
IMAGE_SUFFIXES = tuple(suffix for kind in FORMATS.values() for suffix in kind.suffixes)
LABEL_SUFFIXES = tuple(s for kind in FORMATS.values() if kind.label_maps for s in kind.suffixes)
NPY = ".npy"
LABEL_SUFFIXES += (NPY,)
PIXEL_SUFFIXES = (*IMAGE_SUFFIXES, NPY)  # of images of a data set
UNSUPPORTED_SUFFIXES = (".heic", ".heif", ".avif", ".gif", ".jp2", ".jxl")  # of other images
NUMPY_SIGNATURE = b"\x93NUMPY"
# The first bytes, as the content decides, not the file name; also of common formats that are not
# supported, to name them in errors.
_SIGNATURES = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "BMP": rb"BM",
    "WebP": rb"RIFF....WEBP",
    "TIFF": rb"II[*+]\x00|MM\x00[*+]",
    "GIF": rb"GIF8",
    "HEIC": rb"....ftyp(hei|hev|mif)",
    "AVIF": rb"....ftypavi",
    "JPEG 2000": rb"\x00\x00\x00\x0cjP|\xff\x4f\xff\x51",
    "NumPy": re.escape(NUMPY_SIGNATURE),
}


def format_of(encoded: bytes) -> str | None:
    """Returns the name of a file's format, None if it is unknown."""
    matches = (name for name, start in _SIGNATURES.items() if re.match(start, encoded, re.DOTALL))
    return next(matches, None)


def listed(words: Iterable[str]) -> str:
    """Returns words as a list in a sentence: `a, b or c`."""
    *others, last = words
    return f"{', '.join(others)} or {last}"
