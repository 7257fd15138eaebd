"""Reading label maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from keras_deeplab.data.decoding import check_regular, load, map_array, open_image
from keras_deeplab.data.faults import FileFault
from keras_deeplab.data.formats import FORMATS, MAX_PIXELS, NUMPY_SIGNATURE
from keras_deeplab.data.orientation import stored_orientation, turned
from keras_deeplab.data.paths import check_local

Color = tuple[int, int, int]
SHOWN_COLORS = 20
SHOWN_OF_MANY = 5
MANY_COLORS = 200  # COCO has 171 classes


@dataclass(frozen=True)
class LabelFacts:
    """Size `(height, width)`, number of pixels of each of the 256 values, palette if any.

    The palette is None where the values are those of its colours, and not its indices.
    """

    size: tuple[int, int]
    counts: np.ndarray
    palette: tuple[Color, ...] | None = ()


class ColorCode:
    """The mask value of each colour in RGB label maps, where one of two classes is a fault."""

    def __init__(
        self, colors: Sequence[Color], values: Sequence[int], ignored: Sequence[int] = ()
    ) -> None:
        self._ignored = ignored
        self._twice = len(set(colors)) < len(colors)
        self._listed = _packed(np.array(colors)), np.array(values)

    @cached_property
    def _values(self) -> np.ndarray:
        """1 + the value of each of the 2**24 colours, 0 for those that are not listed."""
        table = np.zeros(1 << 24, np.uint16)  # of which only written pages take memory
        colors, values = self._listed
        table[colors] = values + 1
        return table

    def of_palette(self, palette: Sequence[Color], used: np.ndarray) -> np.ndarray | None:
        """Returns the mask value of each index of a palette, if all used ones have listed colours.

        Optimisers of PNG files turn RGB images into such ones, in which the indices mean nothing.
        An index that is an ignored value, as that of a border, may have any colour.
        """
        if self._twice or used[-1] >= len(palette):
            return None
        values, indices = self._values[_packed(np.array(palette))], np.arange(len(palette))
        is_listed = values > 0
        if not (is_listed | np.isin(indices, self._ignored))[used].all():
            return None
        return np.where(is_listed, values - 1, indices).astype(np.uint8)

    def values(self, pixels: np.ndarray) -> np.ndarray:
        """Returns the mask values of RGB pixels, or raises a FileFault for unknown colours."""
        if self._twice:
            raise FileFault("colour without a class", "two classes have the same colour")
        packed = _packed(pixels)
        values = self._values[packed]
        if not values.all():
            raise FileFault("colour without a class", _listed(*_different(packed[values == 0])))
        return (values - 1).astype(np.uint8)


def read_label(
    path: Path, colors: ColorCode | None = None
) -> tuple[np.ndarray, tuple[Color, ...] | None]:
    """Reads a label map: its values uint8 `(height, width)`, and its palette as in `LabelFacts`.

    The values are the mask values of listed RGB colours, also in a palette, or the indices of a
    palette (TensorFlow would return its colours). A 1-bit mask has the values 0 and 255, as viewers
    display it.
    """
    check_regular(path)
    with path.open("rb") as file:
        start = file.read(len(NUMPY_SIGNATURE))
        if start == NUMPY_SIGNATURE:
            return _integers(_array(path)), ()
        encoded = start + file.read()
    return decode_label(encoded, f"a file named {path.suffix}", colors)


def decode_label(
    encoded: bytes, where: str, colors: ColorCode | None = None
) -> tuple[np.ndarray, tuple[Color, ...] | None]:
    """Decodes the bytes of a label map as `read_label` does; errors say `where` they are from."""
    name, image = open_image(encoded)
    with image:
        if name == "JPEG" or image.info.get("compression") == "jpeg":
            raise FileFault("JPEG label map", f"JPEG data in {where}")
        if not FORMATS[name].label_maps:
            raise FileFault("unreadable file", f"{name} data in {where}")
        orientation = stored_orientation(image, encoded)
        load(name, image, encoded)
        values = _values(image, colors)
        flat = image.getpalette("RGB") or [] if image.mode == "P" else []
    palette: tuple[Color, ...] | None = _palette(bytes(flat))
    if colors and palette:
        used = np.unique(values)
        table = colors.of_palette(palette, used)
        if table is not None and not np.array_equal(table[used], used):
            values, palette = table[values], None
    if name != "TIFF":  # which Pillow has turned
        values = turned(values, orientation)
    return values, palette


@lru_cache(64)  # so that files with one palette share it
def _palette(flat: bytes) -> tuple[Color, ...]:
    return tuple(zip(flat[::3], flat[1::3], flat[2::3], strict=True))


def _different(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different colours of pixels, and the number of pixels of each."""
    return np.unique(packed, return_counts=True)


def _listed(colors: np.ndarray, counts: np.ndarray) -> str:
    """Different colours as text; of many, those of most pixels."""
    are_many = len(colors) > MANY_COLORS
    if are_many:
        colors = colors[np.argsort(-counts, kind="stable")]
    limit = SHOWN_OF_MANY if are_many else SHOWN_COLORS
    shown = [str(color) for color in _unpacked(colors[:limit])]
    text = f"{len(colors)} colours: {', '.join(shown)}{', ...' * (len(colors) > limit)}"
    if are_many:
        text += (
            " (so many are of smooth edges: draw and resize label maps without smoothing, or give "
            "each pixel the nearest colour of a class)"
        )
    return text


def _unpacked(packed: np.ndarray) -> list[list[int]]:
    return np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=-1).tolist()


def _packed(colors: np.ndarray) -> np.ndarray:
    red, green, blue = np.moveaxis(colors.astype(np.int32), -1, 0)
    return red << 16 | green << 8 | blue


def _values(image: Image.Image, colors: ColorCode | None) -> np.ndarray:
    pixels = np.asarray(image)
    if image.mode in ("L", "P"):
        return pixels
    if image.mode == "1":
        return pixels.astype(np.uint8) * 255
    if image.mode.startswith("I"):
        return _integers(pixels)
    if image.mode not in ("RGB", "RGBA"):
        raise FileFault("label map not one-channel", f"mode {image.mode}")
    transparent = np.count_nonzero(pixels[..., 3:] != 255)
    if transparent:
        found = f"mode RGBA, {transparent} pixels are not opaque"
        raise FileFault("label map not one-channel", found)
    if colors is None:
        different, counts = _different(_packed(pixels[..., :3]))
        listable = _unpacked(different) if len(different) <= MANY_COLORS else ()
        found = f"mode {image.mode} of {_listed(different, counts)}"
        raise FileFault("label map not one-channel", found, colors=listable)
    return colors.values(pixels[..., :3])


def _array(path: Path) -> np.ndarray:
    """Maps an array of one channel."""
    check_local(path, "a .npy label map")
    array = map_array(path)
    if array.size > MAX_PIXELS:
        raise FileFault("image too large", f"array of shape {array.shape}")
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 2 or array.dtype.kind not in "biuf":
        found = f"{array.dtype} array of shape {array.shape}"
        raise FileFault("label map not one-channel", found)
    return array


def _integers(values: np.ndarray) -> np.ndarray:
    """Returns wide integers, or floats that are integral, as uint8; 0 and 65535 as 0 and 255."""
    if values.dtype.newbyteorder("=") == np.uint16 and np.isin(values, (0, 65535)).all():
        return (values > 0).astype(np.uint8) * 255
    with np.errstate(invalid="ignore"):
        narrow = values.astype(np.uint8)
    if not np.array_equal(narrow, values):
        found = f"{values.dtype} values from {values.min()} to {values.max()}"
        raise FileFault("label value out of range", found, "whole numbers in 0..255")
    return narrow
