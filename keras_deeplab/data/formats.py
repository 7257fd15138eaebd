"""The supported image formats, for training, the audit, `predict` and exports."""

from __future__ import annotations

import re
import struct
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
PILLOW_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    struct.error,
)


@dataclass(frozen=True)
class Format:
    """A format of image files."""

    name: str
    suffixes: tuple[str, ...]
    signature: bytes  # regular expression for the first bytes; the content decides, not the name
    # Called directly, Pillow's reader tries no other formats, does not warn about sizes, and reads
    # the first of several pictures in a phone's JPEG (MPO).
    plugin: type[ImageFile.ImageFile]
    # Whether TensorFlow decodes it, in Python and in exported graphs. For JPEG, Pillow differs by
    # up to 21 grey levels (another inverse DCT).
    tensorflow: bool = False
    label_maps: bool = False


_TIFF = rb"II[*+]\x00|MM\x00[*+]"
FORMATS = (
    Format("JPEG", (".jpg", ".jpeg"), rb"\xff\xd8\xff", JpegImagePlugin.JpegImageFile, True),
    Format("PNG", (".png",), rb"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile, True, True),
    # TensorFlow reads BMP too, but with the indices of a palette as grey values.
    Format("BMP", (".bmp",), rb"BM", BmpImagePlugin.BmpImageFile, False, True),
    Format("WebP", (".webp",), rb"RIFF....WEBP", WebPImagePlugin.WebPImageFile, True),
    Format("TIFF", (".tif", ".tiff"), _TIFF, TiffImagePlugin.TiffImageFile, False, True),
)
NUMPY_SIGNATURE = b"\x93NUMPY"
IMAGE_SUFFIXES = tuple(suffix for kind in FORMATS for suffix in kind.suffixes)
LABEL_SUFFIXES = (*(s for kind in FORMATS if kind.label_maps for s in kind.suffixes), ".npy")
# Common formats that are not supported, to name them in errors.
_NOT_READ = {
    "GIF": rb"GIF8",
    "HEIC": rb"....ftyp(hei|hev|mif)",
    "AVIF": rb"....ftypavi",
    "JPEG 2000": rb"\x00\x00\x00\x0cjP|\xff\x4f\xff\x51",
    "NumPy": re.escape(NUMPY_SIGNATURE),
}


def format_of(head: bytes) -> Format | None:
    """Returns the format of a file by its first 16 bytes, None if it is not supported."""
    return next((kind for kind in FORMATS if re.match(kind.signature, head, re.DOTALL)), None)


def foreign_name(head: bytes) -> str | None:
    """Returns the name of an unsupported format by a file's first bytes, None if unknown."""
    names = (name for name, start in _NOT_READ.items() if re.match(start, head, re.DOTALL))
    return next(names, None)


def listed(words: tuple[str, ...]) -> str:
    """Returns words as a list in a sentence: `a, b or c`."""
    return f"{', '.join(words[:-1])} or {words[-1]}"
