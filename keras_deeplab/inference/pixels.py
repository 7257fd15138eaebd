"""From what a caller gives as an image to pixels."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import tensorflow as tf

from keras_deeplab.data.bands import Bands
from keras_deeplab.data.decoding import FEW_BITS, Picture
from keras_deeplab.data.formats import FORMATS, NPY, listed
from keras_deeplab.data.orientation import upright_pixels
from keras_deeplab.validation import error

ImageLike = np.ndarray | tf.Tensor | PIL.Image.Image | str | os.PathLike
ValueRange = tuple[float, float] | None


def read_image(
    path: str | os.PathLike, channels: int = 3, value_range: ValueRange = None
) -> np.ndarray:
    """Reads an image file as training does: uint8 `(height, width, channels)`, upright."""
    return open_picture(path, channels, value_range).upright


def open_picture(
    path: str | os.PathLike, channels: int = 3, value_range: ValueRange = None
) -> Picture:
    """Reads an image as `read_image` does, with its EXIF orientation in `facts`."""
    try:
        picture = Bands(channels, value_range).read(Path(path))
    except (ValueError, OSError) as fault:
        reason = str(getattr(fault, "strerror", None) or fault)
        if getattr(fault, "kind", None) == "image too large":
            is_array = Path(path).suffix.lower() == NPY
            advice = 'Give `numpy.load(path, mmap_mode="r")`' if is_array else "Set `window`"
            reason += f". {advice} to read it by rows"
        raise error("image", f"a {listed(FORMATS)} file", os.fspath(path), reason) from fault
    if 0 < picture.facts.largest <= FEW_BITS:
        warnings.warn(
            f"{path} has 16 bits a channel and no value above {picture.facts.largest}: almost "
            "black, as the upper 8 bits are used. Multiply the values of a camera of 12 bits by 16",
            stacklevel=2,
        )
    return picture


def image_pixels(image: ImageLike, channels: int, value_range: ValueRange = None) -> np.ndarray:
    """Returns `predict`'s image as pixels `([batch,] height, width, channels)`."""
    if isinstance(image, str | os.PathLike):
        image = read_image(image, channels, value_range)
    pixels = _array(image, {1: "L", 3: "RGB"}.get(channels))
    received = pixels.shape
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim in (3, 4) and pixels.shape[-1] == 1 and channels == 3:
        pixels = np.repeat(pixels, channels, -1)
    if pixels.ndim not in (3, 4) or pixels.shape[-1] != channels or 0 in pixels.shape:
        axes = f"height, width, {'1 or 3' if channels == 3 else channels}"
        raise ValueError(
            f"`image` must have the shape ({axes}) or (batch, {axes}) and not be empty. Received: "
            f"image of shape {received}"
        )
    # `can_cast` includes bfloat16, which NumPy lacks.
    is_number = np.can_cast(pixels.dtype, np.float64, "same_kind")
    if not is_number or pixels.dtype in (bool, np.longdouble):
        raise ValueError(f"`image` must hold numbers. Received: image of dtype {pixels.dtype}")
    low, high = pixels.min(), pixels.max()
    message = f"`image` must hold values in 0..255. Received: image of values {low} to {high}"
    if not (low >= 0 and high <= 255):  # false for NaN too
        raise ValueError(message)
    if 0 < high <= 1 and not np.issubdtype(pixels.dtype, np.integer):
        warnings.warn(f"{message}, almost black. Do not divide by 255.", stacklevel=3)
    return pixels


def _array(image: Any, mode: str | None) -> np.ndarray:
    """Returns the values of an array, or of a `PIL.Image` in a mode of pillow if one is set."""
    # Not a list: its sizes do not tell a batch from an image.
    if isinstance(image, PIL.Image.Image) or hasattr(image, "__array__"):
        try:
            if isinstance(image, PIL.Image.Image):
                return upright_pixels(image, mode)
            return np.asarray(image)
        except (OSError, SyntaxError) as fault:  # pillow decodes a file only now
            raise error("image", "an image that can be decoded", image, str(fault)) from fault
        except Exception as fault:  # each library has its own for a tensor without values
            raise TypeError(f"`image` must have values. Received: image={image!r}") from fault
    raise TypeError(
        "`image` must be a path, an array or a PIL.Image; for the bytes of a file use "
        f"PIL.Image.open(io.BytesIO(image)). Received: image of type {type(image).__name__}"
    )
