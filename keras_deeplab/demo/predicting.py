"""From the bytes of an image file to what the page shows."""

from __future__ import annotations

import base64
import time
import zlib
from typing import Any

import numpy as np
from PIL import Image

from keras_deeplab.confidence import margin
from keras_deeplab.data.decoding import decode_picture, open_image
from keras_deeplab.data.faults import FileFault
from keras_deeplab.demo.choice import SIDES, Choice, Settings
from keras_deeplab.html_page import data_uri
from keras_deeplab.inference import predict
from keras_deeplab.inference.windows import MEMORY
from keras_deeplab.memory import available_memory
from keras_deeplab.validation import error

MAX_PIXELS = 50_000_000  # of a file, which is decoded at its full size
# Probabilities, their copy in `margin`, and a part that is sorted.
COPIES = 3


def prediction(encoded: bytes, choice: Choice, settings: Settings) -> dict[str, Any]:
    """Predicts an image file.

    Args:
        encoded: The bytes of a JPEG, PNG, BMP, WebP or TIFF file. Its EXIF orientation is applied.
        choice: The model.
        settings: The settings.

    Returns:
        A dict for JSON: `width`, `height`; `image`, the pixels that were predicted, and `file`, the
        label map, as data URIs; `labels` and `confidence` (255 times `confidence.margin`) of the
        pixels, uint8, compressed by zlib, in base64; `shares` of the pixels for each class in 0..1;
        `seconds` of the prediction.

    Raises:
        ValueError: If the file cannot be decoded or is too large, or a setting does not fit.
        MemoryError: If the memory does not suffice.
    """
    pixels = _pixels(encoded, choice.channels, settings.side)
    height, width = pixels.shape[:2]
    memory = min(MEMORY, available_memory() // 2)
    if COPIES * 4 * choice.num_classes * height * width > memory:
        most = memory / (COPIES * 4e6 * choice.num_classes)
        rule = f"at most {most:.1f} megapixels for {choice.num_classes} classes"
        advice = f"Reduce it to a longer side of {SIDES[-1]} or less."
        raise error("image", rule, f"{width}x{height}", advice)
    start = time.perf_counter()
    scores = predict(choice.predictor(settings), pixels, probabilities=True, verbose=0)
    seconds = time.perf_counter() - start
    labels = scores.argmax(-1).astype(np.uint8)
    confidence = np.rint(255 * margin(np.clip(scores, 0, 1))).astype(np.uint8)
    shares = np.bincount(labels.ravel(), minlength=choice.num_classes) / labels.size
    return {
        "width": width,
        "height": height,
        "image": data_uri(_shown(pixels), "JPEG"),
        "file": data_uri(labels, "PNG"),
        "labels": _packed(labels),
        "confidence": _packed(confidence),
        "shares": shares.tolist(),
        "seconds": seconds,
    }


def _pixels(encoded: bytes, channels: int, side: int | None) -> np.ndarray:
    """Returns upright pixels uint8 `(height, width, channels)`, reduced to the longer side."""
    try:
        _, header = open_image(encoded)
        width, height = header.size
        found = f"{width}x{height}" if width * height > MAX_PIXELS else None
    except FileFault as fault:
        if fault.kind != "image too large":
            raise
        found = fault.found
    if found:
        raise error("image", f"at most {MAX_PIXELS / 1e6:.0f} megapixels", found)
    pixels = decode_picture(encoded, channels).upright
    height, width = pixels.shape[:2]
    if side is None or max(height, width) <= side:
        return pixels
    size = [max(round(side * length / max(height, width)), 1) for length in (width, height)]
    reduced = Image.fromarray(_shown(pixels)).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(reduced).reshape(size[1], size[0], channels)


def _shown(pixels: np.ndarray) -> np.ndarray:
    """Returns pixels as Pillow takes them: grey ones without an axis of channels."""
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


def _packed(values: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(values.tobytes(), 1)).decode()
