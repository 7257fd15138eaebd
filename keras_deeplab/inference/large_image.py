"""Image files of more pixels than are decoded at once, read by rows."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from keras_deeplab.data.bands import Bands
from keras_deeplab.data.formats import FORMATS, MAX_PIXELS, PILLOW_ERRORS, format_of
from keras_deeplab.extras import require
from keras_deeplab.files import special_file
from keras_deeplab.validation import error

ORIENTATION = "orientation"  # of EXIF, as libvips names it


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
    except (KeyError, *PILLOW_ERRORS):
        return False  # the error of reading it names the reason


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
        if opened.get_typeof(ORIENTATION) and opened.get(ORIENTATION) != 1:
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
        if Bands(self._channels, self._range).are_plain:
            image = image.colourspace("srgb" if self._channels == 3 else "b-w")
            return image.extract_band(0, n=self._channels)
        if image.bands == 1 and self._channels == 3:
            image = image.bandjoin([image, image])
        if image.bands != self._channels:
            raise error("image", f"of {self._channels} channels", self._path)
        if self._range is None:
            return image if image.format == "uchar" else (image >> 8).cast("uchar")
        low, high = self._range
        return ((image - low) * (255 / (high - low))).rint().cast("uchar")  # which clips

    def _undecodable(self, fault: Exception) -> ValueError:
        return error(
            "image", "a file that can be decoded", self._path, " ".join(str(fault).split())
        )
