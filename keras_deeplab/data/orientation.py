"""EXIF orientation of images."""

from __future__ import annotations

import numpy as np
from PIL import ExifTags, Image

from keras_deeplab.data.formats import PILLOW_ERRORS

EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
UPRIGHT = 1
_INVERSE = {6: 8, 8: 6}  # all others are their own
MIRRORED = (2, 3, 6, 7)
UPSIDE_DOWN = (3, 4, 7, 8)


def stored_orientation(image: Image.Image, encoded: bytes) -> int:
    """Returns the EXIF orientation of an opened image, 1 to 8; 1 if there is no valid one."""
    if image.format == "PNG" and b"eXIf" not in encoded:
        return UPRIGHT  # without decoding the pixels, as Pillow does to find EXIF after them
    return _orientation(image)


def _orientation(image: Image.Image) -> int:
    try:
        if image.format == "TIFF":
            orientation = image.tag_v2.get(ExifTags.Base.Orientation)
        else:  # not `getexif`, which reads XMP too, as viewers do not
            if image.format == "PNG":
                image.load()  # EXIF may follow the pixels
            exif = Image.Exif()
            exif.load(image.info.get("exif", b""))
            orientation = exif.get(ExifTags.Base.Orientation)
    except PILLOW_ERRORS:
        return UPRIGHT  # damaged EXIF, which viewers ignore too
    return orientation if orientation in range(1, 9) else UPRIGHT


def upright_pixels(image: Image.Image, mode: str | None = None) -> np.ndarray:
    """Returns the pixels of a `PIL.Image` as viewers display them.

    Args:
        image: Any image of Pillow; its EXIF orientation is applied.
        mode: Pillow's mode to convert 8-bit images to, such as "RGB".

    Returns:
        Pixels `(height, width)` or `(height, width, channels)`.
    """
    image.load()  # which applies the orientation of a TIFF
    orientation = UPRIGHT if image.format == "TIFF" else _orientation(image)
    convert = mode is not None and image.mode in EIGHT_BIT_MODES
    return turned(np.asarray(image.convert(mode) if convert else image), orientation)


def turned_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Returns the displayed `(height, width)` of an image of a stored size."""
    return size[::-1] if orientation >= 5 else size


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Returns stored pixels `(height, width, ...)` as viewers display them."""
    if orientation == UPRIGHT:
        return pixels
    pixels = pixels.swapaxes(0, 1) if orientation >= 5 else pixels
    pixels = pixels[:, ::-1] if orientation in MIRRORED else pixels
    return np.ascontiguousarray(pixels[::-1] if orientation in UPSIDE_DOWN else pixels)


def as_stored(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Returns displayed pixels as they are stored: the inverse of `turned`."""
    return turned(pixels, _INVERSE.get(orientation, orientation))
