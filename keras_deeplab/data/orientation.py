"""EXIF orientation of images."""

from __future__ import annotations

import numpy as np
from PIL import ExifTags, Image

from keras_deeplab.data.formats import PILLOW_ERRORS

EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB")
UPRIGHT = 1
MIRRORED = (2, 3, 6, 7)
UPSIDE_DOWN = (3, 4, 7, 8)


def stored_orientation(image: Image.Image, encoded: bytes | None = None) -> int:
    """Returns the EXIF orientation of an opened image, 1 to 8; 1 if there is no valid one."""
    if image.format == "PNG" and encoded is not None and b"eXIf" not in encoded:
        return UPRIGHT  # without decoding the pixels
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
    """Returns the pixels as viewers display them; converts 8-bit images to Pillow's `mode`."""
    image.load()  # which applies the orientation of a TIFF
    orientation = UPRIGHT if image.format == "TIFF" else stored_orientation(image)
    if mode is not None and image.mode in EIGHT_BIT_MODES:
        # Pillow has no conversion from LAB to grey.
        image = (image.convert("RGB") if image.mode == "LAB" else image).convert(mode)
    return turned(np.asarray(image), orientation)


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
