"""Images of other channel counts and value ranges than 8-bit RGB."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_deeplab.data.decoding import (
    ImageFacts,
    Picture,
    check_regular,
    map_array,
    read_picture,
)
from keras_deeplab.data.faults import FileFault
from keras_deeplab.data.formats import MAX_PIXELS, NPY
from keras_deeplab.data.paths import check_local
from keras_deeplab.extras import require

DARK = 16  # of 255: 8 bits in a range of 12


@dataclass(frozen=True)
class Bands:
    """How image files become pixels uint8 `(height, width, channels)` in 0..255.

    Files of 8 bits in grey or RGB are read as all others (`read_picture`). Others are .npy arrays
    or, with libvips, TIFF and PNG files of any number of channels: as stored, whatever their
    EXIF orientation.

    Args:
        channels: Number of channels that every image has; 3 also takes grey ones.
        value_range: `(low, high)`, the sample values that become 0 and 255; by default 0..255, or
            0..65535 for 16 bits.
    """

    channels: int = 3
    value_range: tuple[float, float] | None = None

    @property
    def are_plain(self) -> bool:
        """Whether image files are read as all programs read them: 8-bit RGB or grey."""
        return self.channels in (1, 3) and self.value_range is None

    def read(self, path: Path, thorough: bool = False) -> Picture:
        """Decodes an image file, or raises a FileFault or an OSError."""
        is_array = path.suffix.lower() == NPY
        if self.are_plain and not is_array:
            return read_picture(path, self.channels, thorough)
        check_regular(path)
        check_local(path, "an image of other channels or values than 8-bit RGB")
        samples = self._array(path) if is_array else self._vips(path)
        if samples.shape[2] == 1 and self.channels == 3:
            samples = np.repeat(samples, 3, 2)
        pixels = self._scaled(samples)
        has_range = self.value_range is not None
        # For warnings of almost black images.
        largest = int(samples.max()) if samples.dtype == np.uint16 and not has_range else 0
        is_dark = has_range and bool(0 < pixels.max() <= DARK)
        return Picture(pixels, ImageFacts(pixels.shape[:2], largest=largest, is_dark=is_dark))

    def _vips(self, path: Path) -> np.ndarray:
        """All channels of a file, with samples as they are stored."""
        require(f"{path}: reading this image", "large", "pyvips")
        import pyvips

        try:
            # libvips would return the old content of a file that was read before and then changed.
            image = pyvips.Image.new_from_file(str(path), fail_on="truncated", revalidate=True)
            self._check_shape(image.height, image.width, image.bands)  # before it takes memory
            samples = image.numpy()
        except pyvips.Error as error:
            raise FileFault("unreadable file", " ".join(str(error).split())) from error
        return samples.reshape(image.height, image.width, image.bands)

    def _array(self, path: Path) -> np.ndarray:
        """Maps an array of `(height, width[, channels])`, so that nothing is read in vain."""
        array = map_array(path)
        array = array[..., None] if array.ndim == 2 else array
        if array.ndim != 3 or array.dtype.kind not in "uif" or 0 in array.shape:
            found = f"an array of shape {array.shape} and type {array.dtype}"
            rule = "(height, width, channels), numbers"
            raise FileFault("image of unsupported mode", found, rule)
        self._check_shape(*array.shape)
        return array

    def _check_shape(self, height: int, width: int, channels: int) -> None:
        if width * height > MAX_PIXELS:
            raise FileFault("image too large", f"{width}x{height}")
        if channels != self.channels and not (channels == 1 and self.channels == 3):
            rule = f"{self.channels} channels"
            raise FileFault("other number of channels", f"{channels} channels", rule)

    def _scaled(self, samples: np.ndarray) -> np.ndarray:
        if self.value_range is None:
            if samples.dtype == np.uint16:
                return (samples >> 8).astype(np.uint8)
            if samples.dtype == np.uint8:
                return np.ascontiguousarray(samples)
            rule = 'a "range" [low, high] in dataset.json for samples of this type'
            raise FileFault("image of unsupported mode", f"samples of {samples.dtype}", rule)
        low, high = self.value_range
        scaled = (samples.astype(np.float32) - low) * (255 / (high - low))
        if not np.isfinite(scaled).all():
            raise FileFault("image of unsupported mode", "NaN or infinite samples", "numbers")
        return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)
