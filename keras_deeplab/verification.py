"""Comparison of a SavedModel with the model that it was exported from."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_deeplab.graph.network import all_layers
from keras_deeplab.inference import logits_spec

SERVING_DEFAULT = "serving_default"
SERVING_ENCODED = "serving_encoded"
ENCODED_CHANNELS = (1, 3)
VERIFIED_SIZES = ((97, 129), (71, 65))
TOLERANCE = 1e-4
HALF_PRECISION_TOLERANCE = 2e-2


class ExportError(RuntimeError):
    """A SavedModel whose outputs differ from its model's."""


def verify(model: keras.Model, path: str | os.PathLike, tolerance: float | None = None) -> None:
    """Compares each signature of a SavedModel that `saved_model` wrote with the model.

    The inputs are two images of random shades and noise at 97x129 and at 71x65 pixels (at the
    model's own size where it is fixed). The probabilities must agree within the tolerance, the
    labels must be those of the largest probabilities, and each weight in the SavedModel must be one
    of the model's, bit for bit.

    Args:
        model: The model that was exported.
        path: Folder of the SavedModel.
        tolerance: Largest difference of a probability; by default 1e-4, or 0.02 where the model
            computes in half precision.

    Raises:
        ExportError: If the SavedModel cannot be loaded, lacks a signature or has other outputs; the
            message names signature, output, largest difference and tolerance.

    Example:

    >>> keras_deeplab.export.verify(model, "saved_model")
    """
    try:
        loaded = tf.saved_model.load(os.fspath(path))
    except (OSError, ValueError, KeyError, AttributeError, tf.errors.OpError) as error:
        raise ExportError(f"{path} cannot be loaded as a SavedModel: {error}") from error
    if tolerance is None:
        dtypes = {layer.compute_dtype for layer in all_layers(model).values()}
        half = not dtypes.isdisjoint({"float16", "bfloat16"})
        tolerance = HALF_PRECISION_TOLERANCE if half else TOLERANCE
    spec, _ = logits_spec(model)

    # As a graph, as `model.predict` runs it: run eagerly, a deep network's float32 rounding alone
    # comes near the tolerance.
    @tf.function(input_signature=[spec], autograph=False)
    def logits_of(pixels: tf.Tensor) -> tf.Tensor:
        return tf.cast(model(pixels, training=False), tf.float32)

    for shape in verified_shapes(spec):
        images, encodings = test_images(shape)
        expected = _probabilities(logits_of(tf.cast(images, spec.dtype)), shape)
        requests = [(SERVING_DEFAULT, {"images": tf.constant(images)})]
        requests += [(SERVING_ENCODED, {"encoded": encoded}) for encoded in encodings]
        for name, inputs in requests:
            _compare(name, loaded.signatures, inputs, expected, tolerance)
    known = {_fingerprint(weight.numpy()) for weight in model.weights}
    # In the outputs of a saturated or untrained model a wrong weight may not show.
    for variable in loaded.signatures[SERVING_DEFAULT].variables:
        if _fingerprint(variable.numpy()) not in known:
            raise ExportError(
                f"{SERVING_DEFAULT}: the variable {variable.name} of shape {variable.shape} has "
                "values that no weight of the model has"
            )


def _fingerprint(values: np.ndarray) -> tuple[Any, ...]:
    return values.shape, str(values.dtype), hashlib.sha256(values.tobytes()).digest()


def verified_shapes(spec: tf.TensorSpec) -> list[tuple[int, int, int, int]]:
    """Returns the shapes of the batches that `verify` compares."""
    batch, height, width, channels = spec.shape
    return [(batch or 2, height or h, width or w, channels) for h, w in VERIFIED_SIZES]


def test_images(shape: tuple[int, int, int, int]) -> tuple[np.ndarray, list[tf.Tensor]]:
    """Returns random images, and the same as JPEG and PNG for models of 1 or 3 channels.

    They have large spots and noise, so that all parts of a network are active.
    """
    rng = np.random.default_rng(0)
    batch, height, width, channels = shape
    spots = tf.image.resize(rng.normal(127, 120, (batch, 6, 6, channels)), (height, width))
    images = np.clip(spots + rng.normal(0, 15, shape), 0, 255).astype(np.uint8)
    if channels not in ENCODED_CHANNELS:
        return images, []
    # JPEG changes pixels: the images are those that it decodes to.
    jpeg = tf.stack([tf.io.encode_jpeg(image) for image in images])
    images = np.stack([tf.io.decode_jpeg(encoded) for encoded in jpeg])
    return images, [jpeg, tf.stack([tf.io.encode_png(image) for image in images])]


def _probabilities(logits: tf.Tensor, shape: tuple[int, int, int, int]) -> np.ndarray:
    """Returns the model's own probabilities, or raises an error if they cannot be compared."""
    if logits.shape[:3] != shape[:3]:
        raise ExportError(
            "The model must return logits at the input's size. Received: logits of shape "
            f"{logits.shape} for images of shape {shape}"
        )
    if not np.isfinite(logits).all():
        raise ExportError("The model must return finite logits. Received: NaN or infinity")
    probabilities = tf.nn.softmax(logits).numpy()
    if np.ptp(probabilities, axis=(1, 2)).max() < 10 * TOLERANCE:
        warnings.warn(
            "The model's output is the same at every pixel of the test images, so that the "
            "comparison shows only that the weights are equal. Is the model trained?",
            stacklevel=4,
        )
    return probabilities


def check_difference(what: str, found: Any, expected: Any, tolerance: float) -> None:
    """Raises an ExportError if probabilities differ by more than the tolerance, or in shape."""
    found, expected = np.asarray(found), np.asarray(expected)
    if found.shape != expected.shape:
        raise ExportError(
            f"{what} probabilities must have shape {expected.shape}. Received: {found.shape}"
        )
    difference = np.abs(found - expected).max()
    if not difference <= tolerance:  # true for NaN
        raise ExportError(
            f"{what} probabilities differ from the model's by up to {difference:.3g}, more than "
            f"the tolerance {tolerance:g}"
        )


def _compare(
    name: str,
    signatures: dict[str, Callable[..., dict[str, tf.Tensor]]],
    inputs: dict[str, tf.Tensor],
    expected: np.ndarray,
    tolerance: float,
) -> None:
    if name not in signatures:
        raise ExportError(f"The SavedModel must have the signature {name!r}")
    try:
        outputs = signatures[name](**inputs)
        labels, probabilities = outputs["labels"].numpy(), outputs["probabilities"].numpy()
        chosen = np.take_along_axis(probabilities, labels[..., None], -1)[..., 0]
    except (TypeError, ValueError, LookupError, tf.errors.OpError) as error:
        raise ExportError(f"{name} failed: {error}") from error
    check_difference(f"{name}:", probabilities, expected, tolerance)
    if not np.array_equal(chosen, probabilities.max(-1)):
        raise ExportError(f"{name}: labels differ from the classes of the largest probabilities")
