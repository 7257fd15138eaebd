"""From a trained model and an image to a label map."""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_deeplab.frozen import FrozenFunction
from keras_deeplab.graph import geometry
from keras_deeplab.graph.network import all_layers, top_level_calls
from keras_deeplab.image_input import ImageLike, image_pixels
from keras_deeplab.large_image import LargeImage, is_large
from keras_deeplab.layers import CropLike, ResizeLike
from keras_deeplab.models import MultiScale
from keras_deeplab.upsampled_labels import upsampled, upsampled_labels
from keras_deeplab.validation import boolean, error, integer, size
from keras_deeplab.windows import (
    GRID,
    OVERLAP,
    SMALLEST,
    Rows,
    available_memory,
    blended,
    default_window,
    starts,
)

FEW_WINDOWS = 8  # take no progress bar
BYTES_PER_PIXEL = 1000  # of a prediction with a network whose maps are not known
# Beside the models, not on them: an attribute would be tracked, saved and copied with its model.
_FUNCTIONS: weakref.WeakKeyDictionary[keras.Model, ModelFunctions] = weakref.WeakKeyDictionary()


def logits_spec(model: keras.Model) -> tuple[tf.TensorSpec, int]:
    """Returns the spec of a segmentation model's input and the number of classes, or raises."""
    if not getattr(model, "inputs", None):
        raise error("model", "a functional keras.Model", model)
    inputs, outputs = ([tuple(t.shape) for t in ts] for ts in (model.inputs, model.outputs))
    if (
        [len(shape) for shape in inputs + outputs] != [4, 4]
        or len(inputs) != 1
        or inputs[0][-1] is None
        or (outputs[0][-1] or 0) < 2
    ):
        raise error(
            "model",
            "a map from one input (batch, height, width, channels) to logits (batch, height, "
            "width, num_classes) with a fixed number of channels and at least 2 classes",
            {"inputs": inputs, "outputs": outputs},
        )
    return tf.TensorSpec(inputs[0], model.inputs[0].dtype), outputs[0][-1]


def label_dtype(num_classes: int) -> tf.DType:
    """Returns the dtype of a predicted label map: uint8, or int32 above 255 classes."""
    return tf.uint8 if num_classes <= 255 else tf.int32


class ModelFunctions:
    """The compiled functions of a model from a batch of pixels to labels and to probabilities.

    The weights are constants. The network is traced once for all sizes; run eagerly, it would keep
    all its intermediate maps to the end. Where it ends in a `ResizeLike`, that layer is left out of
    it, so that labels do not need the logits at full size.
    """

    def __init__(self, model: keras.Model) -> None:
        # Nothing here holds the model itself, which would keep it in the dictionary.
        spec, num_classes = logits_spec(model)
        network, align_corners = _without_upsampling(model)
        dtype = label_dtype(num_classes)

        def outputs(images: tf.Tensor) -> dict[str, tf.Tensor]:
            logits, *references = keras.tree.flatten(network(images, training=False))
            sizes = [tf.shape(reference)[1:3] for reference in references or [logits]]
            logits = tf.cast(logits, tf.float32)
            return {"logits": logits, "size": sizes[0], "shown": sizes[-1]}

        size = tf.TensorSpec([2], tf.int32)
        signature = [tf.TensorSpec([None, None, None, num_classes]), size, size]

        @tf.function(input_signature=signature, autograph=False)
        def labels(logits: tf.Tensor, size: tf.Tensor, shown: tf.Tensor) -> tf.Tensor:
            if align_corners is None:
                return tf.cast(tf.argmax(logits, -1, output_type=tf.int32), dtype)
            found = upsampled_labels(logits, size, align_corners, dtype)
            return found[:, : shown[0], : shown[1]]

        @tf.function(input_signature=signature, autograph=False)
        def probabilities(logits: tf.Tensor, size: tf.Tensor, shown: tf.Tensor) -> tf.Tensor:
            if align_corners is not None:
                logits = upsampled(logits, size, align_corners)[:, : shown[0], : shown[1]]
            return tf.nn.softmax(logits)

        any_batch = tf.TensorSpec([None, *spec.shape[1:]], spec.dtype, name="images")
        self._network, self._dtype = FrozenFunction(outputs, [any_batch]), spec.dtype
        self._labels, self._probabilities = labels, probabilities
        self.bytes_per_pixel = _bytes_per_pixel(model)
        self._weights, self._policies = model.weights, _policies(model)
        self._fingerprints = _fingerprint_function(self._weights)
        self._frozen = self._fingerprints().numpy().tobytes()

    def are_of(self, model: keras.Model) -> bool:
        """Whether the model has the weights and dtype policies that it had."""
        return (
            self._policies == _policies(model)
            and list(map(id, self._weights)) == list(map(id, model.weights))
            and self._frozen == self._fingerprints().numpy().tobytes()
        )

    def labels(self, pixels: tf.Tensor) -> tf.Tensor:
        """Returns labels `(batch, height, width)`."""
        return self._labels(*self._run(pixels))

    def probabilities(self, pixels: tf.Tensor) -> tf.Tensor:
        """Returns probabilities `(batch, height, width, num_classes)`, float32."""
        return self._probabilities(*self._run(pixels))

    def of_window(self, pixels: np.ndarray) -> np.ndarray:
        """Returns the probabilities of an image without a batch axis."""
        return self.probabilities(pixels[None]).numpy()[0]

    def _run(self, pixels: tf.Tensor) -> list[tf.Tensor]:
        # Not in one function with what follows, which would copy the constants once more.
        found = self._network(tf.cast(pixels, self._dtype))
        return [found[name] for name in ("logits", "size", "shown")]


def model_functions(model: keras.Model) -> ModelFunctions:
    """Returns the compiled functions of a model, which are kept as long as it stays as it is."""
    known = _FUNCTIONS.pop(model, None)
    if known is None or not known.are_of(model):
        del known  # before others take memory
        known = ModelFunctions(model)
    _FUNCTIONS[model] = known
    return known


def _policies(model: keras.Model) -> list[str]:
    return [layer.dtype_policy.name for layer in all_layers(model).values()]


def _bytes_per_pixel(model: keras.Model) -> int:
    """About the memory of a prediction for each pixel of the image: four times the largest map.

    Of the views of `MultiScale` about half are in memory together. Measured, docs/serving.md.
    """
    if isinstance(model, MultiScale):
        config = model.get_config()
        views = sum(scale**2 for scale in config["scales"]) * (1 + config["flip"])
        return math.ceil(_bytes_per_pixel(model.model) * max(1, views / 2))
    try:
        calls = geometry(model).calls
    except ValueError:  # layers of unknown effect on height and width
        return BYTES_PER_PIXEL
    largest = 1.0
    for call, _, output in calls:
        if None not in output.stride:
            largest = max(largest, call.outputs[0].shape[-1] / math.prod(output.stride))
    return math.ceil(4 * 4 * largest)


def _fingerprint_function(weights: list[keras.Variable]) -> Any:
    """Returns a function that computes 8 bytes of each weight."""

    @tf.function(autograph=False)
    def fingerprints() -> tf.Tensor:
        rows = [tf.reshape(tf.convert_to_tensor(weight), [1, -1]) for weight in weights]
        return tf.concat([tf.zeros([0, 8], tf.uint8), *map(tf.fingerprint, rows)], 0)

    return fingerprints


def _without_upsampling(model: keras.Model) -> tuple[keras.Model, bool | None]:
    """Returns a model without its last `ResizeLike`, and whether that aligns corners.

    The outputs are the coarse logits, the map of the size that they get, and, where they are
    cropped after that, the map of the size that is left. A model of another end comes back itself,
    with None.
    """
    calls = {id(call.outputs[0]): call for call in top_level_calls(model)}
    last, shown = calls.get(id(model.outputs[0])), []
    if last is not None and isinstance(last.operation, CropLike):
        last, shown = calls.get(id(last.inputs[0])), [last.inputs[1]]
    is_resize = last is not None and isinstance(last.operation, ResizeLike)
    own_call = type(model).call.__module__.partition(".")[0] not in ("keras", "keras_deeplab")
    if not is_resize or own_call or last.operation.compute_dtype != "float32":
        return model, None
    if last.inputs[0].shape[1:3] == (1, 1):  # which the layer broadcasts
        return model, None
    return keras.Model(model.inputs, [*last.inputs, *shown]), last.operation.align_corners


def predict(
    model: keras.Model,
    image: ImageLike,
    probabilities: bool = False,
    window: Sequence[int] | None = None,
    overlap: int | None = None,
    verbose: str | int = "auto",
) -> np.ndarray:
    """Predicts the class of every pixel of an image, or of a batch of images of one size.

    The model is compiled on the first call, for images of all sizes, and again when its weights
    have changed. An image that is too large for the memory is predicted in overlapping windows.

    Args:
        model: Segmentation model on pixels in 0..255; any input size that the model takes.
        image: Path of a JPEG, PNG, BMP, WebP or TIFF file, or an array or `PIL.Image`
            `(height, width, 3)`, `(height, width)`, `(height, width, 1)` or with a batch axis in
            front; uint8, or another dtype with values in 0..255. One channel is repeated where the
            model takes three. The EXIF orientation of a file or `PIL.Image` is applied, as viewers
            and `PIL.ImageOps.exif_transpose` do.
        probabilities: Whether to return the probabilities of the classes in place of labels.
        window: `(height, width)` of the windows. By default the whole image where the network's
            maps take at most 2 GiB and half of the free memory, else the largest square that does.
            For a model of a fixed input size, that size.
        overlap: Pixels by which neighbouring windows overlap at least, from 0 to below the window's
            sides; 128 by default, or a quarter of the smaller side if that is less. Probabilities
            are blended there.
        verbose: `"auto"` for a progress bar from 9 windows on, 1 for one, 0 for none.

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
    boolean("probabilities", probabilities)
    spec, num_classes = logits_spec(model)
    fixed, channels = spec.shape[1:3], spec.shape[3]
    chosen = _checked_window(fixed, window, overlap)
    pixels: Any
    if chosen is not None and isinstance(image, str | os.PathLike) and is_large(image):
        pixels = LargeImage(image, channels)
    else:
        allowed = fixed if chosen is None else (None, None)
        pixels = image_pixels(image, tf.TensorShape((None, *allowed, channels)))
    sides, is_batch = pixels.shape[-3:-1], len(pixels.shape) == 4
    if any(known is not None and side < known for side, known in zip(sides, fixed, strict=True)):
        raise error("image", f"at least of the model's input size {tuple(fixed)}", sides)
    functions = model_functions(model)
    chosen = chosen or default_window(sides, functions.bytes_per_pixel)
    overlap = min(OVERLAP, min(chosen) // 4) if overlap is None else overlap
    try:
        if isinstance(pixels, np.ndarray) and np.all(np.less_equal(sides, chosen)):
            compute = functions.probabilities if probabilities else functions.labels
            found = compute(pixels if is_batch else pixels[None]).numpy()
            return found if is_batch else found[0]
        grid = GRID if tuple(fixed) == (None, None) else 1
        by_windows = partial(
            _by_windows,
            functions.of_window,
            windows=(chosen, overlap, grid),
            dtype=None if probabilities else label_dtype(num_classes).as_numpy_dtype,
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
    dtype: Any,
    verbose: str | int,
) -> np.ndarray:
    """Returns the labels of an image in a dtype, or its probabilities with None."""
    sides, (window, overlap, grid) = image.shape[:2], windows
    count = math.prod(len(starts(*axis, overlap, grid)) for axis in zip(sides, window, strict=True))
    shown = int(count > FEW_WINDOWS) if verbose == "auto" else verbose
    progress = keras.utils.Progbar(count, verbose=shown, unit_name="window")
    found = None
    for done, (part, sums) in enumerate(blended(scores, image, window, overlap, grid), 1):
        if found is None:
            found = np.empty(sides if dtype else (*sides, sums.shape[-1]), dtype or np.float32)
            if found.nbytes > available_memory():  # which the system would give, and then end us
                raise MemoryError(
                    f"`image` must be so small that its prediction, {found.nbytes / 1e9:.1f} GB, "
                    f"fits into the memory. Received: image of shape {image.shape}."
                )
        found[part] = sums.argmax(-1) if dtype else sums / sums.sum(-1, keepdims=True)
        progress.update(done)
    return found


def _checked_window(
    fixed: tf.TensorShape, window: Sequence[int] | None, overlap: int | None
) -> tuple[int, int] | None:
    """Returns the window for a model of an input size, after a check of the overlap too."""
    if window is not None:
        window = size("window", window)
        if not fixed.is_compatible_with(window):
            raise error("window", f"the model's input size {tuple(fixed)}", window)
    smaller = min(window or (SMALLEST,))
    if overlap is not None and integer("overlap", overlap, 0) >= smaller:
        raise error("overlap", f"below the window's sides, {smaller} at least", overlap)
    return window
