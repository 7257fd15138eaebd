"""From a trained model and an image to a label map."""

from __future__ import annotations

import os
import warnings
import weakref
from pathlib import Path
from typing import Any

import keras
import numpy as np
import PIL.Image
import tensorflow as tf

from keras_deeplab.data.decoding import FEW_BITS, Picture, read_picture
from keras_deeplab.data.formats import FORMATS, listed
from keras_deeplab.data.orientation import upright_pixels
from keras_deeplab.graph.network import all_layers
from keras_deeplab.validation import error

ImageLike = np.ndarray | tf.Tensor | PIL.Image.Image | str | os.PathLike

LabelFunction = tf.types.experimental.PolymorphicFunction
# Beside the models, not on them: an attribute would be tracked, saved and copied with its model.
_LABEL_FUNCTIONS: weakref.WeakKeyDictionary[keras.Model, tuple[list, LabelFunction]] = (
    weakref.WeakKeyDictionary()
)


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


def label_function(model: keras.Model) -> LabelFunction:
    """Returns the compiled function from a batch of pixels to label maps, kept with the model.

    It is traced once for all sizes, and again where the model gets other variables or a layer
    another dtype policy. Run eagerly, a
    functional model keeps all its intermediate maps to the end, which takes several times the
    memory of the graph.
    """
    weights = model.weights
    policies = [layer.dtype_policy.name for layer in all_layers(model).values()]
    known, labels_of = _LABEL_FUNCTIONS.get(model, (None, None))
    if known and known[0] == policies and list(map(id, known[1])) == list(map(id, weights)):
        return labels_of
    spec, num_classes = logits_spec(model)
    any_batch = tf.TensorSpec([None, *spec.shape[1:]], spec.dtype)
    network = weakref.ref(model)  # a function that held its model would keep it in the dictionary

    @tf.function(input_signature=[any_batch], autograph=False)
    def labels_of(pixels: tf.Tensor) -> tf.Tensor:
        labels = tf.argmax(network()(pixels, training=False), -1, output_type=tf.int32)
        return tf.cast(labels, label_dtype(num_classes))

    _LABEL_FUNCTIONS[model] = (policies, weights), labels_of
    return labels_of


def predict(model: keras.Model, image: ImageLike) -> np.ndarray:
    """Predicts the class of every pixel of an image, or of a batch of images of one size.

    The model is compiled on the first call, for images of all sizes.

    Args:
        model: Segmentation model on pixels in 0..255; any input size that the model takes.
        image: Path of a JPEG, PNG, BMP, WebP or TIFF file, or an array or `PIL.Image`
            `(height, width, 3)`, `(height, width)`, `(height, width, 1)` or with a batch axis in
            front; uint8, or another dtype with values in 0..255. One channel is repeated where the
            model takes three. The EXIF orientation of a file or `PIL.Image` is applied, as viewers
            and `PIL.ImageOps.exif_transpose` do.

    Returns:
        Labels `(height, width)`, or `(batch, height, width)` for a batch; uint8, or int32 above
        255 classes.

    Raises:
        TypeError: If the image is of another type, such as bytes, a list or None.
        ValueError: If the image has another shape or dtype or values outside 0..255, or is not the
            path of a file that can be decoded.
        MemoryError: If there is not enough memory for an image of that size.

    Example:

    >>> labels = keras_deeplab.predict(model, "street.jpg")
    >>> labels.shape, labels.dtype
    ((360, 480), dtype('uint8'))
    """
    spec, _ = logits_spec(model)
    pixels = _pixels(image, spec.shape)
    batch = pixels if pixels.ndim == 4 else pixels[None]
    try:
        labels = label_function(model)(tf.cast(batch, spec.dtype)).numpy()
    except tf.errors.ResourceExhaustedError as exhausted:
        raise MemoryError(
            f"`image` must be small enough for the memory. Received: image of shape {pixels.shape}."
            " Make it smaller, or predict parts of it."
        ) from exhausted
    return labels if pixels.ndim == 4 else labels[0]


def read_image(path: str | os.PathLike, channels: int = 3) -> np.ndarray:
    """Reads an image file as training does: uint8 `(height, width, channels)`, upright."""
    return open_picture(path, channels).upright


def open_picture(path: str | os.PathLike, channels: int = 3) -> Picture:
    """Reads an image as `read_image` does, with its EXIF orientation in `facts`."""
    try:
        picture = read_picture(Path(path), channels)
    except (ValueError, OSError) as fault:
        reason = str(getattr(fault, "strerror", None) or fault)
        raise error("image", f"a {listed(FORMATS)} file", os.fspath(path), reason) from fault
    if 0 < picture.facts.largest <= FEW_BITS:
        warnings.warn(
            f"{path} has 16 bits a channel and no value above {picture.facts.largest}: almost "
            "black, as the upper 8 bits are used. Multiply the values of a camera of 12 bits by 16",
            stacklevel=2,
        )
    return picture


def _pixels(image: ImageLike, shape: tf.TensorShape) -> np.ndarray:
    """Returns `predict`'s image as pixels `([batch,] height, width, channels)`."""
    height, width, channels = shape[1:]
    if isinstance(image, str | os.PathLike):
        if channels not in (1, 3):
            raise error("image", f"an array for a model of {channels} channels", os.fspath(image))
        image = read_image(image, channels)
    pixels = _array(image, {1: "L", 3: "RGB"}.get(channels))
    received = pixels.shape
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim in (3, 4) and pixels.shape[-1] == 1 and channels == 3:
        pixels = np.repeat(pixels, channels, -1)
    fits = pixels.ndim in (3, 4) and shape[1:].is_compatible_with(pixels.shape[-3:])
    if not fits or 0 in pixels.shape:
        last = "1 or 3" if channels == 3 else channels
        axes = f"{height or 'height'}, {width or 'width'}, {last}"
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
