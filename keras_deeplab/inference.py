"""From a trained model to label maps and scores."""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import PIL.Image
import tensorflow as tf

from keras_deeplab.boundary import BoundaryScores
from keras_deeplab.data.decoding import FEW_BITS, Picture, read_picture
from keras_deeplab.data.faults import FileFault
from keras_deeplab.data.formats import FORMATS, listed
from keras_deeplab.data.orientation import upright_pixels
from keras_deeplab.graph.network import all_layers
from keras_deeplab.metrics import SegmentationMetrics, by_name, scores

Image = np.ndarray | tf.Tensor | PIL.Image.Image | str | os.PathLike

LabelFunction = tf.types.experimental.PolymorphicFunction
# Beside the models, not on them: an attribute would be tracked, saved and copied with its model.
_LABEL_FUNCTIONS: weakref.WeakKeyDictionary[keras.Model, tuple[list, list, LabelFunction]] = (
    weakref.WeakKeyDictionary()
)


def logits_spec(model: keras.Model) -> tuple[tf.TensorSpec, int]:
    """Returns what a segmentation model takes and how many classes it answers with.

    Args:
        model: Model that maps pixels `(batch, height, width, channels)` to logits
            `(batch, height, width, num_classes)`.

    Returns:
        `(pixels, num_classes)`: the spec of the model's input, None where a size is free, and
        the number of logits per pixel.

    Raises:
        ValueError: If the model has more than one input or output, or they are no maps.
    """
    if not getattr(model, "inputs", None):
        raise ValueError(
            f"model must be a functional keras.Model; received {type(model).__name__} {model!r}"
        )
    shapes = [tuple(t.shape) for t in model.inputs], [tuple(t.shape) for t in model.outputs]
    if [len(s) for side in shapes for s in side] != [4, 4] or len(shapes[0]) != 1:
        raise ValueError(
            "model must map one input (batch, height, width, channels) to logits (batch, height, "
            f"width, num_classes); received a model of inputs {shapes[0]} and outputs {shapes[1]}"
        )
    ((pixels,), (logits,)) = shapes
    if pixels[-1] is None or logits[-1] is None or logits[-1] < 2:
        raise ValueError(
            "model must have a fixed number of channels and at least 2 classes; received input "
            f"{pixels} and output {logits}"
        )
    return tf.TensorSpec(pixels, model.inputs[0].dtype), logits[-1]


def label_dtype(num_classes: int) -> tf.DType:
    """Returns the dtype of a predicted label map: uint8, or int32 above 255 classes."""
    return tf.uint8 if num_classes <= 255 else tf.int32


def label_function(model: keras.Model) -> LabelFunction:
    """Returns the compiled function from pixels to label maps of a segmentation model.

    It takes pixels `(batch, height, width, channels)` of the model's input dtype and returns labels
    `(batch, height, width)`. It is traced once for all sizes, on its first call, and kept as long
    as the model. Changed values of the weights need no new trace; where the model gets other
    variables or its layers another dtype policy, a new function replaces it.

    Run eagerly, a functional model keeps all its intermediate maps to the end, which takes several
    times the memory of the graph.
    """
    policies = [layer.dtype_policy.name for layer in all_layers(model).values()]
    weights = model.weights
    known = _LABEL_FUNCTIONS.get(model)
    if known and known[0] == policies and list(map(id, known[1])) == list(map(id, weights)):
        return known[2]
    spec, num_classes = logits_spec(model)
    free_batch = tf.TensorSpec([None, *spec.shape[1:]], spec.dtype)
    network = weakref.ref(model)  # a function that held its model would keep it in the dictionary

    @tf.function(input_signature=[free_batch], autograph=False)
    def labels_of(pixels: tf.Tensor) -> tf.Tensor:
        labels = tf.argmax(network()(pixels, training=False), -1, output_type=tf.int32)
        return tf.cast(labels, label_dtype(num_classes))

    _LABEL_FUNCTIONS[model] = policies, weights, labels_of
    return labels_of


def predict(model: keras.Model, image: Image) -> np.ndarray:
    """Predicts the class of every pixel of a photograph, or of a batch of one size.

    The model is compiled on the first call, for images of all sizes.

    Args:
        model: Segmentation model on pixels in 0..255; any input size that the model takes.
        image: Path of a JPEG, PNG, BMP, WebP or TIFF file, or an array or `PIL.Image`:
            `(height, width, 3)`, `(height, width)`, `(height, width, 1)` or with a batch axis in
            front `(batch, height, width, 3 or 1)`; uint8, or another dtype with values in 0..255.
            One channel is repeated where the model takes three. The EXIF orientation of a file or
            a `PIL.Image` is applied, so that the labels have the size and orientation in which
            viewers show the image. `PIL.ImageOps.exif_transpose` does the same to an image. Arrays
            have none.

    Returns:
        Labels `(height, width)`, or `(batch, height, width)` for a batch; uint8, or int32 above
        255 classes.

    Raises:
        TypeError: If the image is none of these, such as bytes, a list or None.
        ValueError: If the image has another shape or dtype, values outside 0..255, or is no
            path of a file that can be decoded.
        MemoryError: If the memory does not suffice for an image of that size.

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
    except tf.errors.ResourceExhaustedError as error:
        raise MemoryError(
            f"`image` must be small enough for the memory. Received: image of shape {pixels.shape}."
            " Make it smaller, or predict parts of it."
        ) from error
    return labels if pixels.ndim == 4 else labels[0]


def _pixels(image: Image, shape: tf.TensorShape) -> np.ndarray:
    """Returns the pixels `([batch,] height, width, channels)` of whatever `predict` takes."""
    height, width, channels = shape[1:]
    if isinstance(image, str | os.PathLike):
        if channels not in (1, 3):
            raise ValueError(
                f"`image` must be an array where a model takes {channels} channels; files give 1 "
                f"or 3. Received: image={_short(os.fspath(image))}"
            )
        image = read_image(image, channels)
    pixels = _array(image, {1: "L", 3: "RGB"}.get(channels))
    given = pixels.shape
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim in (3, 4) and pixels.shape[-1] == 1 and channels == 3:
        pixels = np.repeat(pixels, channels, -1)
    fits = pixels.ndim in (3, 4) and shape[1:].is_compatible_with(pixels.shape[-3:])
    if not fits or 0 in pixels.shape:
        axes = (
            f"{height or 'height'}, {width or 'width'}, {'1 or 3' if channels == 3 else channels}"
        )
        raise ValueError(
            f"`image` must have the shape ({axes}) or (batch, {axes}) and not be empty. Received: "
            f"image of shape {given}"
        )
    _check_range(pixels)
    return pixels


def _array(image: Any, mode: str | None) -> np.ndarray:
    """Returns the values of an array or a picture, the latter in a mode of pillow if one is set."""
    rule = "`image` must be a path, an array or a PIL.Image"
    # A list would be a batch, an image or neither, by the luck of its sizes.
    if not hasattr(image, "__array__") and not isinstance(image, PIL.Image.Image):
        hint = " For the bytes of a file, use PIL.Image.open(io.BytesIO(image))."
        is_bytes = isinstance(image, bytes | bytearray | memoryview)
        raise TypeError(
            f"{rule}. Received: image of type {type(image).__name__}.{hint if is_bytes else ''}"
        )
    try:
        if isinstance(image, PIL.Image.Image):
            return upright_pixels(image, mode)
        return np.asarray(image)
    except (OSError, SyntaxError) as error:  # of pillow, which decodes what it has opened only now
        raise ValueError(
            f"`image` must be a picture that can be decoded. Received: image={image!r} ({error})"
        ) from error
    except Exception as error:  # each library has its own for a tensor without values
        raise TypeError(f"{rule} with values. Received: image={image!r}") from error


def read_image(path: str | os.PathLike, channels: int = 3) -> np.ndarray:
    """Reads a photograph as the training pipeline does.

    Args:
        path: A JPEG, PNG, BMP, WebP or TIFF file.
        channels: 1 or 3; palettes become colours, alpha is dropped, 16-bit samples keep their upper
            byte, and an EXIF orientation is applied, so that the pixels lie as viewers show them.

    Returns:
        Pixels uint8 `(height, width, channels)`.

    Raises:
        ValueError: If there is no such file, or it cannot be read or decoded as a whole.
    """
    return open_picture(path, channels).upright


def open_picture(path: str | os.PathLike, channels: int = 3) -> Picture:
    """Reads an image as `read_image` does, with its EXIF orientation in `facts`."""
    _check_exists(path)
    try:
        picture = read_picture(Path(path), channels)
    except (FileFault, OSError) as error:
        formats = listed(tuple(kind.name for kind in FORMATS))
        raise ValueError(
            f"`image` must be a {formats} file. Received: image={os.fspath(path)!r}: {error}"
        ) from error
    if 0 < picture.facts.largest <= FEW_BITS:
        warnings.warn(
            f"{path} has 16 bits a channel and no value above {picture.facts.largest}: almost "
            "black, as the upper 8 bits are used. Multiply the values of a camera of 12 bits by 16",
            stacklevel=2,
        )
    return picture


def _check_exists(path: str | os.PathLike) -> None:
    if os.path.lexists(path):
        return
    path = os.fspath(path)
    hint = " Download the file first." if "://" in str(path) else ""
    raise ValueError(
        "`image` must be the path of an image file. "
        f"Received: image={_short(path)}, which does not exist.{hint}"
    )


def _short(path: str | bytes) -> str:
    """The path as it is shown; a message does not carry a whole picture in a `data:` address."""
    shown = repr(path)
    return shown if len(shown) <= 300 else f"{shown[:100]}..."


def _check_range(pixels: np.ndarray) -> None:
    if pixels.dtype == np.uint8:
        return
    try:
        dtype = tf.as_dtype(pixels.dtype)  # knows bfloat16, which to numpy is no number
    except TypeError:
        dtype = tf.variant
    if not (dtype.is_floating or dtype.is_integer):
        raise ValueError(
            f"`image` must hold numbers in 0..255. Received: image of dtype {pixels.dtype}"
        )
    low, high = pixels.min(), pixels.max()
    if not (low >= 0 and high <= 255):  # false for NaN too
        raise ValueError(
            f"`image` must hold values in 0..255. Received: image of values {low} to {high}"
        )
    if dtype.is_floating and 0 < high <= 1:
        warnings.warn(
            f"`image` must hold values in 0..255. Received: image of values {low} to {high}, all "
            "but black. Do not divide by 255.",
            stacklevel=4,
        )


def evaluate(
    model: keras.Model,
    dataset: tf.data.Dataset,
    class_names: Sequence[str] | None = None,
    ignore_label: int | None = 255,
    verbose: str | int = "auto",
    boundary: bool = False,
) -> dict:
    """Scores a model on labelled images, from one confusion matrix over all pixels.

    The images may be of differing sizes (in batches of 1): the model is traced once.

    Args:
        model: Segmentation model on pixels in 0..255.
        dataset: Finite dataset of `(images, labels)`: images `(batch, height, width, channels)`
            in 0..255, labels `(batch, height, width)` or `(batch, height, width, 1)`; or of
            single images and label maps without the batch axis.
        class_names: One name per class; the class numbers by default.
        ignore_label: Label of the pixels that do not count, or None where every pixel counts.
        verbose: `"auto"` or 1 for a progress bar, 2 for one line at the end, 0 for silence.
        boundary: Whether to score the pixels along boundaries too, which takes NumPy about a tenth
            of a second for an image of 512 x 512.

    Returns:
        A dict that can be written as JSON: what `metrics.scores` returns (`mean_iou`, `per_class`,
        `pixel_accuracy` and more), `true_share` (a dict of class name to its share of the true
        pixels, to hold `predicted_share` against), `images`, `pixels` (those that count), and with
        `boundary` what `boundary.BoundaryScores` returns (`boundary_mean_iou`,
        `boundary_per_class`, `trimap_mean_iou`).

    Raises:
        ValueError: If the dataset is empty or infinite or holds something else, or the names do
            not fit.
        tf.errors.InvalidArgumentError: If a label is out of range.

    Example:

    >>> report = keras_deeplab.evaluate(model, dataset, class_names=["sky", "ground"])
    >>> report["mean_iou"], report["per_class"]["sky"]
    (0.81, 0.93)
    """
    spec, num_classes = logits_spec(model)
    metric = SegmentationMetrics(num_classes, class_names, ignore_label, per_class=False)
    borders = BoundaryScores(num_classes, class_names, ignore_label) if boundary else None
    dataset = pair_batches(dataset)
    step = _evaluation_step(model, metric, dataset.element_spec, spec)
    steps = int(dataset.cardinality())
    shown = tf.function(metric.result, autograph=False)  # does not judge a part of the data
    progress = keras.utils.Progbar(
        None if steps < 0 else steps,
        verbose=1 if verbose == "auto" else verbose,
        stateful_metrics=list(shown()),
    )
    images, done = 0, 0
    for done, (pixels, labels) in enumerate(dataset, 1):
        maps = step(pixels, labels)
        if borders is not None:
            for truth, predicted in zip(*(side.numpy() for side in maps), strict=True):
                borders.update(truth, predicted)
        images += int(tf.shape(pixels)[0])
        values = [(name, float(value)) for name, value in shown().items()]
        progress.update(done, values, finalize=False)
    if not done:
        raise ValueError("dataset must hold at least one batch; received an empty dataset")
    metric.result()  # warns of masks of 0 and 255
    progress.target = done
    progress.update(done, values, finalize=True)
    return {
        **_report(metric.confusion.numpy(), class_names),
        "images": images,
        **({} if borders is None else borders.result()),
    }


def _report(confusion: np.ndarray, class_names: Sequence[str] | None) -> dict:
    """Returns the scores and what the truth holds."""
    report, pixels = scores(confusion, class_names), confusion.sum()
    shares = confusion.sum(1) / (pixels if pixels else np.nan)
    true_share = by_name(shares, list(report["per_class"]))
    return {**report, "true_share": true_share, "pixels": int(pixels)}


def pair_batches(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Returns the dataset with a batch axis, or says what is wrong with it."""
    element = getattr(dataset, "element_spec", None)
    if not isinstance(element, tuple) or len(element) != 2:
        raise ValueError(
            "dataset must be a tf.data.Dataset of (images, labels); received "
            f"{type(dataset).__name__} of {element}"
        )
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError("dataset must be finite; received one that repeats forever")
    return dataset.batch(1) if element[0].shape.rank == 3 else dataset


def _evaluation_step(
    model: keras.Model, metric: SegmentationMetrics, element: tuple, spec: tf.TensorSpec
) -> LabelFunction:
    """Returns the function that scores a batch, traced once for all sizes.

    It adds the batch to the metric and returns `(truth, predicted)`, `(batch, height, width)`.
    """
    pixels, labels = element
    free = tf.TensorSpec([None, *spec.shape[1:]], pixels.dtype)
    maps = tf.TensorSpec([None] * labels.shape.rank, labels.dtype)
    trailing = labels.shape.rank == 4
    labels_of = label_function(model)

    @tf.function(input_signature=[free, maps])
    def step(images: tf.Tensor, truth: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        predicted = labels_of(tf.cast(images, spec.dtype))
        truth = tf.squeeze(truth, -1) if trailing else truth
        metric.update_state(truth, predicted)
        return truth, predicted

    return step
