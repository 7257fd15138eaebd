"""The image formats that are read: one list for training, the audit, `predict` and exports."""

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

# Pillow refuses larger images when it opens them; its warning begins at half of that.
MAX_PIXELS = 178_956_970
# What Pillow raises on damaged files.
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
    """A format of image files.

    Attributes:
        name: As in messages.
        suffixes: Endings of file names, in lower case.
        signature: Regular expression for the first bytes. The content decides, not the name.
        plugin: Pillow's reader. Called directly, it neither tries other formats nor warns of
            sizes, and takes a phone's several pictures in one JPEG (MPO) for the first of them.
        tensorflow: Whether pixels come from TensorFlow's op, in Python and in exported graphs
            alike. For JPEG, Pillow's differ by up to 21 grey levels (another inverse DCT).
        label_maps: Whether label maps may have the format.
    """

    name: str
    suffixes: tuple[str, ...]
    signature: bytes
    plugin: type[ImageFile.ImageFile]
    tensorflow: bool = False
    label_maps: bool = False


FORMATS = (
    Format("JPEG", (".jpg", ".jpeg"), rb"\xff\xd8\xff", JpegImagePlugin.JpegImageFile, True),
    Format("PNG", (".png",), rb"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile, True, True),
    # TensorFlow reads BMP too, but takes the indices of a palette for grey values.
    Format("BMP", (".bmp",), rb"BM", BmpImagePlugin.BmpImageFile, False, True),
    Format("WebP", (".webp",), rb"RIFF....WEBP", WebPImagePlugin.WebPImageFile, True),
    Format(
        "TIFF",
        (".tif", ".tiff"),
        rb"II[*+]\x00|MM\x00[*+]",
        TiffImagePlugin.TiffImageFile,
        False,
        True,
    ),
)
NUMPY_SIGNATURE = b"\x93NUMPY"
IMAGE_SUFFIXES = tuple(suffix for kind in FORMATS for suffix in kind.suffixes)
LABEL_SUFFIXES = (*(s for kind in FORMATS if kind.label_maps for s in kind.suffixes), ".npy")
# What people have besides, so that a message can name it.
_NOT_READ = {
    "GIF": rb"GIF8",
    "HEIC": rb"....ftyp(hei|hev|mif)",
    "AVIF": rb"....ftypavi",
    "JPEG 2000": rb"\x00\x00\x00\x0cjP|\xff\x4f\xff\x51",
    "NumPy": re.escape(NUMPY_SIGNATURE),
}


def format_of(head: bytes) -> Format | None:
    """Returns the format of a file by its first bytes (16 suffice), None for any other."""
    return next((kind for kind in FORMATS if re.match(kind.signature, head, re.DOTALL)), None)


def foreign_name(head: bytes) -> str | None:
    """Returns the name of a format that is not read, by a file's first bytes, if it is known."""
    names = (name for name, start in _NOT_READ.items() if re.match(start, head, re.DOTALL))
    return next(names, None)


def listed(words: tuple[str, ...]) -> str:
    """Returns words as a message lists them: `a, b or c`."""
    return f"{', '.join(words[:-1])} or {words[-1]}"
