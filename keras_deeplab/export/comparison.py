"""Comparison of an export with its model: the condition under which it is put in place."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from keras_deeplab.data import DatasetInfo, Source, evaluation_dataset
from keras_deeplab.evaluation import evaluate
from keras_deeplab.export.definition import Definition
from keras_deeplab.inference import logits_of, logits_spec, read_image
from keras_deeplab.runtimes import ExportedModel, labels_of
from keras_deeplab.validation import error, fraction

logger = logging.getLogger(__name__)

SIZES = ((97, 129), (71, 65))  # of the built-in images
TIE = 1e-4  # differences of probabilities that may be rounding


class ExportError(RuntimeError):
    """An export that fails, or deviates from its model by more than the limits."""


@dataclass(frozen=True)
class Limits:
    """The largest deviations of an export from its model.

    Args:
        probability: Largest difference of a probability, in [0, 1].
        agreement: Smallest share of pixels with the model's label. Where the model's probabilities
            for two classes differ by less than 1e-4 both are its label.
        mean_iou_drop: Largest loss of mean IoU on labelled images, in [0, 1].

    Example:

    >>> keras_deeplab.export.Limits(agreement=0.98)
    Limits(probability=1.0, agreement=0.98, mean_iou_drop=1.0)
    """

    probability: float = 1.0
    agreement: float = 0.0
    mean_iou_drop: float = 1.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            fraction(name, value)


# Rounding alone reaches several 1e-4 in deep networks with random weights, and reduced precision
# moves the boundaries between classes; a mistake moves far more.
LIMITS = {
    "float32": Limits(1e-3, 0.9999, 0.001),
    "float16": Limits(agreement=0.97, mean_iou_drop=0.005),
    "bfloat16": Limits(agreement=0.9, mean_iou_drop=0.01),
    "int8": Limits(agreement=0.9, mean_iou_drop=0.02),
}

_LOCK = threading.Lock()
_ROUNDED: list[bool] = []  # what each thread in `whole_float32` found


@contextmanager
def whole_float32() -> Iterator[None]:
    """NVIDIA GPUs since Ampere round the factors of float32 products to 10 bits by default.

    Of several threads the last one that leaves restores what the first one found.
    """
    enable = tf.config.experimental.enable_tensor_float_32_execution
    with _LOCK:
        _ROUNDED.append(tf.config.experimental.tensor_float_32_execution_enabled())
        enable(False)
    try:
        yield
    finally:
        with _LOCK:
            rounded = _ROUNDED.pop()
            if not _ROUNDED:
                enable(rounded)


@whole_float32()
def check_export(
    exported: ExportedModel,
    definition: Definition,
    limits: Limits | None = None,
    images: Sequence[np.ndarray] | None = None,
    source: Source | None = None,
) -> None:
    """Compares an export with its model and logs the figures, or raises an ExportError.

    Args:
        exported: The export, opened from its file.
        definition: What was exported.
        limits: By default those of the precision.
        images: Batches of images; by default built-in ones at two odd sizes.
        source: Labelled images, to compare mean IoU on its split val, or on train without one.
    """
    limits = limits or LIMITS[definition.precision]
    logits_of = model_function(definition.model)
    difference, equal, pixels = 0.0, 0, 0
    for batch in built_in_images(definition.spec.shape) if images is None else images:
        expected = probabilities_of(logits_of(tf.constant(batch)), batch.shape)
        try:
            outputs = exported(batch)
        except ValueError as fault:
            raise ExportError(str(fault)) from fault
        labels = labels_of(outputs)[..., None].astype(np.int64)
        for name in outputs.keys() - {"labels"}:
            found = outputs[name]
            if not np.array_equal(np.take_along_axis(found, labels, -1)[..., 0], found.max(-1)):
                raise ExportError(f"{exported.path}: labels differ from those of the {name}")
            found = found if name == "probabilities" else tf.nn.softmax(found).numpy()
            difference = max(difference, float(np.abs(found - expected).max()))
        own = np.take_along_axis(expected, labels, -1)[..., 0]
        equal += np.count_nonzero(own >= expected.max(-1) - TIE)
        pixels += own.size
    figures = f"{equal / pixels:.2%} of labels equal"
    if outputs.keys() != {"labels"}:
        figures += f", probabilities differ by up to {difference:.2g}"
    passed = difference <= limits.probability and equal / pixels >= limits.agreement
    if source is not None and passed:
        sides = definition.spec.shape[1:3]
        before, after = (_mean_iou(model, source, sides) for model in (definition.model, exported))
        figures += f", mean IoU {before:.4f} of the model and {after:.4f} of the export"
        passed = before - after <= limits.mean_iou_drop
    if not passed:
        raise ExportError(
            f"The export deviates from its model: {figures}. The limits are {limits}. Nothing was "
            "written."
        )
    logger.info("Compared with the model: %s", figures)


def model_function(model: keras.Model) -> tf.types.experimental.PolymorphicFunction:
    """Returns the model as a graph from uint8 images to float32 logits.

    It is not frozen, so that a mistake of freezing shows. Run eagerly, a deep network's float32
    rounding alone comes near the limit.
    """
    spec, _ = logits_spec(model)
    any_batch = tf.TensorSpec([None, *spec.shape[1:]], tf.uint8)

    @tf.function(input_signature=[any_batch], autograph=False)
    def compute(images: tf.Tensor) -> tf.Tensor:
        return logits_of(model, tf.cast(images, spec.dtype))

    return compute


def built_in_shapes(shape: Sequence[int | None]) -> list[tuple[int, int, int, int]]:
    """Returns the shapes of the built-in images for an input of this shape."""
    batch, height, width, channels = shape
    shapes = [(batch or 2, height or h, width or w, channels) for h, w in SIZES]
    return list(dict.fromkeys(shapes))


def built_in_images(shape: Sequence[int | None]) -> list[np.ndarray]:
    """Returns batches of random images with large spots and noise.

    All parts of a network are active on them.
    """
    rng = np.random.default_rng(0)
    batches = []
    for batch, height, width, channels in built_in_shapes(shape):
        spots = tf.image.resize(rng.normal(127, 120, (batch, 6, 6, channels)), (height, width))
        noise = rng.normal(0, 15, spots.shape)
        batches.append(np.clip(spots + noise, 0, 255).astype(np.uint8))
    return batches


def image_batches(
    images: Sequence[np.ndarray | str | os.PathLike],
    shape: Sequence[int | None],
    info: DatasetInfo | None,
) -> list[np.ndarray]:
    """Returns a user's images, files or uint8 `(height, width, channels)`, as batches of one."""
    expected, batches = tf.TensorShape(shape[1:]), []
    if isinstance(images, str | os.PathLike) or not len(images):
        raise error("images", "a list of images that is not empty", images)
    for image in images:
        if isinstance(image, str | os.PathLike):
            image = read_image(image, shape[-1], info and info.value_range)
        pixels = np.asarray(image)
        if pixels.dtype != np.uint8 or not expected.is_compatible_with(pixels.shape):
            received = f"{pixels.dtype} {pixels.shape}"
            raise error("images", f"files or uint8 arrays of the shape {expected}", received)
        batches.append(np.repeat(pixels[None], shape[0] or 1, 0))
    return batches


def probabilities_of(logits: tf.Tensor, shape: Sequence[int]) -> np.ndarray:
    """Returns the model's own probabilities, or raises an error if they cannot be compared."""
    if tuple(logits.shape[:3]) != tuple(shape[:3]):
        raise ExportError(
            "The model must return logits at the input's size. Received: logits of shape "
            f"{logits.shape} for images of shape {shape}"
        )
    if not np.isfinite(logits).all():
        raise ExportError("The model must return finite logits. Received: NaN or infinity")
    probabilities = tf.nn.softmax(logits).numpy()
    if np.ptp(probabilities, axis=(1, 2)).max() < 10 * TIE:
        warnings.warn(
            "The model's output is the same at every pixel of the compared images, so that the "
            "comparison shows little. Is the model trained?",
            stacklevel=3,
        )
    return probabilities


def scored_split(source: Source) -> str:
    """Returns the split on which mean IoU is compared: val, or else the last."""
    return "val" if "val" in source.splits else source.splits[-1]


def _mean_iou(model: keras.Model | ExportedModel, source: Source, sides: tf.TensorShape) -> float:
    """The mean IoU, in the size of the export if it is fixed."""
    dataset = evaluation_dataset(source, scored_split(source), cache=False)
    if None not in sides:

        def resized(image: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            labels = tf.image.resize(labels[..., None], sides, "nearest")[..., 0]
            return tf.round(tf.image.resize(image, sides)), labels

        dataset = dataset.map(resized)
    try:
        return evaluate(model, dataset, verbose=0)["mean_iou"] or 0.0
    except ValueError as fault:
        raise ExportError(f"The mean IoU cannot be computed: {fault}") from fault
