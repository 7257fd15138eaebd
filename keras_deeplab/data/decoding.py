from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from keras_deeplab.data.faults import FileFault

Color = tuple[int, int, int]
EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True)
class ImageFacts:
    """Size `(height, width)`, EXIF orientation (1 is upright) and bits per channel."""

    size: tuple[int, int]
    orientation: int = 1
    bits: int = 8

    @property
    def upright_size(self) -> tuple[int, int]:
        """The size after turning the photograph as its EXIF orientation asks."""
        return self.size[::-1] if self.orientation >= 5 else self.size


@dataclass(frozen=True)
class LabelFacts:
    """Size `(height, width)`, number of pixels of each of the 256 values, palette if any."""

    size: tuple[int, int]
    counts: np.ndarray
    palette: tuple[Color, ...] = ()


def decode_image(encoded: tf.Tensor, channels: int = 3) -> tf.Tensor:
    """Decodes JPEG, PNG or BMP bytes to uint8 `(height, width, channels)`, 3 (RGB) or 1 (grey).

    One channel becomes three, a palette its colours, alpha is dropped, 16-bit samples keep their
    upper byte, and an EXIF orientation is not applied: label maps are drawn on the pixels as
    stored.
    """
    image = tf.io.decode_image(encoded, channels=channels, expand_animations=False)
    return tf.ensure_shape(image, (None, None, channels))


def image_facts(path: Path) -> ImageFacts:
    """Decodes a whole image file as training will and returns its facts, or raises a FileFault."""
    encoded = path.read_bytes()
    with _open(encoded) as image:
        size, mode, kind = image.size[::-1], image.mode, image.format
        # Pillow would decode a whole PNG to look for EXIF behind its pixels.
        exif = image.getexif() if kind in ("JPEG", "MPO") else {}
        if kind not in ("JPEG", "MPO", "PNG", "BMP"):
            raise FileFault("unreadable file", f"{kind} data in a file named {path.suffix}")
        if kind == "BMP" and mode not in ("RGB", "RGBA", "L"):
            # TensorFlow takes the palette's indices for grey values without a word.
            raise FileFault("image of unsupported mode", f"BMP with a palette (mode {mode})")
        try:
            decode_image(encoded)
        except (tf.errors.OpError, ValueError) as error:
            _load(image, encoded)
            raise FileFault("image of unsupported mode", f"{kind} of mode {mode}") from error
    return ImageFacts(size, exif.get(EXIF_ORIENTATION, 1), 16 if mode.startswith("I") else 8)


def read_label(path: Path) -> tuple[np.ndarray, tuple[Color, ...]]:
    """Reads a label map: its values uint8 `(height, width)`, and the palette if it has one.

    The indices of a palette PNG are its values (TensorFlow would return their colours). A 1-bit
    mask has the values 0 and 255, as every viewer shows it.
    """
    encoded = path.read_bytes()
    with _open(encoded) as image:
        if image.format in ("JPEG", "MPO"):
            raise FileFault("JPEG label map", "JPEG data in a file named .png")
        if image.format != "PNG":
            raise FileFault("unreadable file", f"{image.format} data in a file named .png")
        if image.mode not in ("L", "P", "1"):
            raise FileFault("label map not one-channel", f"mode {image.mode}")
        _load(image, encoded)
        values = np.asarray(image)
        flat = image.getpalette("RGB") or [] if image.mode == "P" else []
    if values.dtype == bool:
        values = values.astype(np.uint8) * 255
    return values, tuple(zip(flat[::3], flat[1::3], flat[2::3], strict=True))


def label_facts(path: Path) -> LabelFacts:
    """Decodes a whole label map and returns its facts, or raises a FileFault."""
    values, palette = read_label(path)
    return LabelFacts(values.shape, np.bincount(values.reshape(-1), minlength=256), palette)


def stored_size(path: Path) -> tuple[int, int]:
    """Returns `(height, width)` from an image file's header."""
    with Image.open(path) as image:
        return image.size[::-1]


def _open(encoded: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(encoded))
    except Image.DecompressionBombError as error:
        raise FileFault("unreadable file", str(error)) from error
    except (OSError, SyntaxError, ValueError) as error:
        if _ends_early(encoded):
            raise FileFault("truncated file", f"{len(encoded)} bytes, no whole header") from error
        raise FileFault("unreadable file", f"{len(encoded)} bytes that are no image") from error


def _load(image: Image.Image, encoded: bytes) -> None:
    """Decodes with Pillow, which tells a file that ends too early from one that is damaged."""
    try:
        image.load()
    except (OSError, SyntaxError, ValueError, IndexError) as error:
        early = _ends_early(encoded) or "truncated" in str(error)
        kind = "truncated file" if early else "unreadable file"
        raise FileFault(kind, f"{len(encoded)} bytes, {error}") from error
    if _ends_early(encoded):
        raise FileFault("truncated file", f"{len(encoded)} bytes, the end of the file is missing")


def _ends_early(encoded: bytes) -> bool:
    """Whether a file that begins as a PNG or a JPEG lacks the end marker of its kind."""
    if encoded.startswith(b"\x89PNG"):
        return b"IEND\xaeB`\x82" not in encoded
    # An embedded thumbnail has an end marker too, so only the file's own end counts.
    return encoded.startswith(b"\xff\xd8") and b"\xff\xd9" not in encoded[-64:]
