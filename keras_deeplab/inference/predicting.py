"""From a trained model and an image to a label map or probabilities."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_deeplab.inference.functions import Predictor, logits_spec, model_functions
from keras_deeplab.inference.large_image import LargeImage, is_large
from keras_deeplab.inference.pixels import ImageLike, image_pixels
from keras_deeplab.inference.windows import (
    GRID,
    OVERLAP,
    SMALLEST,
    Rows,
    blended,
    default_window,
    starts,
)
from keras_deeplab.labels import label_dtype
from keras_deeplab.memory import available_memory
from keras_deeplab.runtimes import ExportedModel
from keras_deeplab.validation import boolean, error, integer, pair
from keras_deeplab.validation import value_range as checked_range

FEW_WINDOWS = 8  # take no progress bar


def predict(
    model: Predictor,
    image: ImageLike | LargeImage,
    probabilities: bool = False,
    window: int | Sequence[int] | None = None,
    overlap: int | None = None,
    verbose: str | int = "auto",
    value_range: tuple[float, float] | None = None,
) -> np.ndarray:
    """Predicts the class of every pixel of an image, or of a batch of images of one size.

    The model is compiled on the first call, for images of all sizes, and again when its weights
    have changed. An image that is too large for the memory is predicted in overlapping windows.

    Args:
        model: Segmentation model on pixels in 0..255, or an export that
            `runtimes.open_exported` opened, or a `crf.RefinedModel`; any input size that the model
            takes.
        image: Path of a JPEG, PNG, BMP, WebP or TIFF file, or an array or `PIL.Image`
            `(height, width, 3)`, `(height, width)`, `(height, width, 1)` or with a batch axis in
            front; uint8, or another dtype with values in 0..255. One channel is repeated where the
            model takes three. The EXIF orientation of a file or `PIL.Image` is applied, as viewers
            and `PIL.ImageOps.exif_transpose` do.
        probabilities: Whether to return the probabilities of the classes in place of labels.
        window: `(height, width)` of the windows, or one integer for both. By default the whole
            image where the network's maps take at most 2 GiB and half of the free memory, else
            equal windows, as few as of the largest square that does. For a model of a fixed input
            size, that size.
        overlap: Pixels by which neighbouring windows overlap at least, from 0 to below the window's
            sides; 128 by default, or a quarter of the smaller side if that is less. Probabilities
            are blended there.
        verbose: `"auto"` for a progress bar from 9 windows on, 1 for one, 0 for none.
        value_range: `(low, high)`, the sample values of a file that become 0 and 255, as in the
            training; by default that inside an export, else 0..255, or 0..65535 for 16 bits.

    Returns:
        Labels `(height, width)`, or `(batch, height, width)` for a batch; uint8, or int32 above
        255 classes. With `probabilities` float32 of the same shape and `num_classes`.

    Raises:
        TypeError: If the image is of another type, such as bytes, a list or None.
        ValueError: If the image has another shape or dtype or values outside 0..255, or is not the
            path of a file that can be decoded, or if another argument is out of its range.
        MemoryError: If there is not enough memory for an image of that size.

    Example:

    >>> labels = keras_deeplab.predict(model, "street.jpg")
    >>> labels.shape, labels.dtype
    ((360, 480), dtype('uint8'))
    >>> scores = keras_deeplab.predict(model, "street.jpg", probabilities=True, window=(256, 256))
    >>> scores.shape, scores.dtype
    ((360, 480, 11), dtype('float32'))
    """
    kept = np.asarray if boolean("probabilities", probabilities) else None
    return predict_kept(model, image, kept, window, overlap, verbose, value_range)


def predict_kept(
    model: Predictor,
    image: ImageLike | LargeImage,
    kept: Callable[[np.ndarray], np.ndarray] | None,
    window: int | Sequence[int] | None = None,
    overlap: int | None = None,
    verbose: str | int = "auto",
    value_range: tuple[float, float] | None = None,
) -> np.ndarray:
    """`predict` with `kept` of `predict_pixels`."""
    if value_range is None:
        value_range = getattr(model, "value_range", None)
    else:
        value_range = checked_range("value_range", value_range)
    spec, _ = logits_spec(model)
    fixed, channels = spec.shape[1:3], spec.shape[3]
    chosen = checked_window(fixed, window, overlap)
    if chosen is None and None not in fixed:
        chosen = tuple(fixed)
    pixels: Any
    if isinstance(image, LargeImage):
        pixels = image
    elif chosen is not None and isinstance(image, str | os.PathLike) and is_large(image):
        pixels = LargeImage(image, channels, value_range)
    else:
        pixels = image_pixels(image, channels, value_range)
    sides = pixels.shape[-3:-1]
    labels_alone = isinstance(model, ExportedModel) and model.metadata.outputs == ("labels",)
    if labels_alone and not fixed.is_compatible_with(sides):
        rule = f"exactly of the size {tuple(fixed)} of an export that returns labels alone"
        raise error("image", rule, sides, "Resize it, or export with probabilities")
    if any(known is not None and side < known for side, known in zip(sides, fixed, strict=True)):
        raise error("image", f"at least of the model's input size {tuple(fixed)}", sides)
    return predict_pixels(model, pixels, kept, chosen, overlap, verbose)


def predict_pixels(
    model: Predictor,
    pixels: np.ndarray | LargeImage,
    kept: Callable[[np.ndarray], np.ndarray] | None = None,
    window: tuple[int, int] | None = None,
    overlap: int | None = None,
    verbose: str | int = "auto",
) -> np.ndarray:
    """`predict` on pixels that fit the model, an image or a batch, without checks of them.

    Labels, or what `kept` makes of the probabilities `(..., num_classes)` of each window.
    """
    functions = model_functions(model)
    spec, num_classes = logits_spec(functions)
    fixed, per_pixel = spec.shape[1:3], functions.bytes_per_pixel
    sides, is_batch = pixels.shape[-3:-1], len(pixels.shape) == 4
    chosen = window or default_window(sides, per_pixel, overlap)
    chosen = tuple(known or side for known, side in zip(fixed, chosen, strict=True))
    overlap = min(OVERLAP, min(chosen) // 4) if overlap is None else overlap
    try:
        if isinstance(pixels, np.ndarray) and np.all(np.less_equal(sides, chosen)):
            images = pixels if is_batch else pixels[None]
            size_of_all = (len(images) * sides[0], sides[1])
            parts = [images]
            if len(images) > 1 and default_window(size_of_all, per_pixel) != size_of_all:
                parts = np.split(images, len(images))  # one by one, in the memory of one
            if kept is None:
                found = [np.array(functions.labels(part)) for part in parts]
            else:
                found = [kept(np.array(functions.probabilities(part))) for part in parts]
            found = np.concatenate(found)
            return found if is_batch else found[0]
        grid = GRID if tuple(fixed) == (None, None) else 1
        dtype = label_dtype(num_classes).as_numpy_dtype
        by_windows = partial(
            _by_windows,
            lambda pixels: np.array(functions.probabilities(pixels[None]))[0],
            windows=(chosen, overlap, grid),
            kept=kept or (lambda probabilities: probabilities.argmax(-1).astype(dtype)),
            verbose=verbose,
        )
        return np.stack(list(map(by_windows, pixels))) if is_batch else by_windows(pixels)
    except tf.errors.ResourceExhaustedError as exhausted:
        raise MemoryError(
            f"`image` must be small enough for the memory. Received: image of shape {pixels.shape}."
            " Give a smaller `window`."
        ) from exhausted


def _by_windows(
    scores: Callable[[np.ndarray], np.ndarray],
    image: Rows,
    windows: tuple[tuple[int, int], int, int],
    kept: Callable[[np.ndarray], np.ndarray],
    verbose: str | int,
) -> np.ndarray:
    """Returns what is kept of the probabilities of an image."""
    sides, (window, overlap, grid) = image.shape[:2], windows
    count = math.prod(len(starts(*axis, overlap, grid)) for axis in zip(sides, window, strict=True))
    shown = int(count > FEW_WINDOWS) if verbose == "auto" else verbose
    progress = keras.utils.Progbar(count, verbose=shown, unit_name="window")
    found = None
    for done, (part, sums) in enumerate(blended(scores, image, window, overlap, grid), 1):
        sums /= sums.sum(-1, keepdims=True)
        values = kept(sums)
        if found is None:
            found = np.empty((*sides, *values.shape[2:]), values.dtype)
            if found.nbytes > available_memory():  # it would be given, and used up later
                raise MemoryError(
                    f"`image` must be so small that its prediction, {found.nbytes / 1e9:.1f} GB, "
                    f"fits into the memory. Received: image of shape {image.shape}."
                )
        found[part] = values
        progress.update(done)
    return found


def checked_window(
    fixed: tf.TensorShape, window: int | Sequence[int] | None, overlap: int | None
) -> tuple[int, int] | None:
    """Returns the window for a model of an input size, after a check of the overlap too."""
    if window is not None:
        window = pair("window", window)
        if not fixed.is_compatible_with(window):
            raise error("window", f"the model's input size {tuple(fixed)}", window)
    smaller = min(window or [side or SMALLEST for side in fixed])
    if overlap is not None and integer("overlap", overlap, 0) >= smaller:
        raise error("overlap", f"below the window's sides, {smaller} at least", overlap)
    return window
