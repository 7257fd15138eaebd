"""Image files of more pixels than are decoded at once, read by rows."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from keras_deeplab.data.bands import Bands
from keras_deeplab.data.formats import FORMATS, LUMA, MAX_PIXELS, PILLOW_ERRORS, format_of
from keras_deeplab.extras import require
from keras_deeplab.files import special_file
from keras_deeplab.validation import error

ORIENTATION = "orientation"  # of EXIF, as libvips names it
GREY = ("b-w", "grey16")


def is_large(path: str | os.PathLike) -> bool:
    """Whether an image file declares more pixels than are decoded at once."""
    try:
        if special_file(Path(path)):
            return False
        with open(path, "rb") as file:
            name = format_of(file.read(32))
            file.seek(0)
            with FORMATS[name].plugin(file) as image:
                return math.prod(image.size) > MAX_PIXELS
    except Image.DecompressionBombError:
        return True
    except KeyError:
        return False  # the error of reading it names the reason
    except PILLOW_ERRORS:  # such as a TIFF file of five channels
        return _is_large_for_libvips(path)


def _is_large_for_libvips(path: str | os.PathLike) -> bool:
    try:
        import pyvips

        image = pyvips.Image.new_from_file(os.fspath(path), revalidate=True)  # its header
        return image.width * image.height > MAX_PIXELS
    except Exception:  # no libvips, or a damaged file
        return False


class LargeImage:
    """An image file of 8 or 16 bits that is read once from its top to its bottom, by libvips.

    Only the rows of the last window are in memory: uint8 `(height, width, channels)`, converted as
    `open_picture` does.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        channels: int,
        value_range: tuple[float, float] | None = None,
    ) -> None:
        require(f"{path}: reading an image of over {MAX_PIXELS} pixels", "large", "pyvips")
        import pyvips

        self._path, self._fault = os.fspath(path), pyvips.Error
        self._channels, self._range = channels, value_range
        try:
            opened = self._opened()
            image = self._converted(opened)
            # One region for all rows: libvips drops its decoded strips at the end of others.
            self._region = pyvips.Region.new(image)
        except pyvips.Error as fault:
            raise self._undecodable(fault) from fault
        turned = opened.get_typeof(ORIENTATION) and opened.get(ORIENTATION) != 1
        if turned and Bands(channels, value_range).are_plain:  # others are read as stored
            raise error("image", "stored upright, as it is read by rows", self._path)
        self.shape = (image.height, image.width, channels)
        self._top, self._rows = 0, np.empty((0, *self.shape[1:]), np.uint8)

    def __getitem__(self, window: tuple[slice, slice]) -> np.ndarray:
        """Returns a window whose rows are those of the last one or begin below its top."""
        rows, columns = window
        end = self._top + len(self._rows)
        if rows.stop > end:
            kept = self._rows[rows.start - self._top :]
            try:
                read = self._region.fetch(0, end, self.shape[1], rows.stop - end)
            except self._fault as fault:
                raise self._undecodable(fault) from fault
            strip = np.frombuffer(read, np.uint8).reshape(-1, *self.shape[1:])
            self._top, self._rows = rows.start, np.concatenate([kept, strip])
        return self._rows[rows.start - self._top : rows.stop - self._top, columns]

    def reduced(self, side: int) -> np.ndarray:
        """Reads the file once more, to an image whose sides are at most `side`."""
        image = self._converted(self._opened())
        small = image.resize(min(1, side / max(image.width, image.height)))
        return small.numpy().reshape(small.height, small.width, -1)

    def _opened(self) -> Any:
        import pyvips

        return pyvips.Image.new_from_file(self._path, access="sequential", fail_on="truncated")

    def _converted(self, image: Any) -> Any:
        if image.format not in ("uchar", "ushort"):
            raise error("image", "of 8 or 16 bits a channel", self._path)
        if image.interpretation == "cmyk":  # for which libvips and Pillow have other formulas
            raise error("image", "grey or RGB, as it is read by rows", self._path)
        if Bands(self._channels, self._range).are_plain:
            if self._channels == 1 and image.interpretation in GREY:
                return _eight_bits(image.extract_band(0))
            image = image.colourspace("srgb").extract_band(0, n=3)
            if self._channels == 3:
                return image
            # As Pillow does; libvips' "b-w" is a luminance in linear light.
            return ((image.recomb([list(LUMA)]) + 2**15) / 2**16).floor().cast("uchar")
        if image.bands == 1 and self._channels == 3:
            image = image.bandjoin([image, image])
        if image.bands != self._channels:
            raise error("image", f"of {self._channels} channels", self._path)
        if self._range is None:
            return _eight_bits(image)
        low, high = self._range
        return ((image - low) * (255 / (high - low))).rint().cast("uchar")  # which clips

    def _undecodable(self, fault: Exception) -> ValueError:
        return error(
            "image", "a file that can be decoded", self._path, " ".join(str(fault).split())
        )


def _eight_bits(image: Any) -> Any:
    return image if image.format == "uchar" else (image >> 8).cast("uchar")
