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

from keras_deeplab.data.in_graph import decode_image
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

    The inputs are two images of random shapes, shades and noise at 97x129 and at 71x65 pixels (at
    the model's own size where it is fixed). The probabilities must agree within the tolerance,
    the labels must be those of the largest probabilities, and each weight in the SavedModel must be
    one of the model's, bit for bit.

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
    spec, _ = logits_spec(model)
    channels = spec.shape[-1]
    names = [SERVING_DEFAULT] + ([SERVING_ENCODED] if channels in ENCODED_CHANNELS else [])
    missing = [name for name in names if name not in loaded.signatures]
    if missing:
        raise ExportError(f"{path} must have the signatures {names}; missing: {missing}")
    if tolerance is None:
        dtypes = {layer.compute_dtype for layer in all_layers(model).values()}
        half = not dtypes.isdisjoint({"float16", "bfloat16"})
        tolerance = HALF_PRECISION_TOLERANCE if half else TOLERANCE
    for shape in verified_shapes(spec):
        images, encodings = test_images(shape)
        expected = _expected(model, images, spec)
        requests = [(SERVING_DEFAULT, {"images": tf.constant(images)})]
        requests += [(SERVING_ENCODED, {"encoded": encoded}) for encoded in encodings]
        for name, inputs in requests:
            _compare(name, loaded.signatures[name], inputs, expected, tolerance)
    _compare_weights(model, loaded.signatures[SERVING_DEFAULT])


def verified_shapes(spec: tf.TensorSpec) -> list[tuple[int, int, int, int]]:
    """Returns the shapes of the batches that `verify` compares."""
    batch, height, width, channels = spec.shape
    return [(batch or 2, height or h, width or w, channels) for h, w in VERIFIED_SIZES]


def test_images(shape: tuple[int, int, int, int]) -> tuple[np.ndarray, list[tf.Tensor]]:
    """Returns images, and the same images as JPEG and PNG for models of 1 or 3 channels.

    They have large shapes, gradients and noise, so that all parts of a network are active.
    """
    rng = np.random.default_rng(0)
    _, height, width, channels = shape
    y, x = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[None, :, None]
    images = np.empty(shape, np.uint8)
    for image in images:
        waves = np.zeros((height, width, channels))
        for octave in range(1, 6):
            angle, phase = rng.uniform(0, 2 * np.pi, (2, channels))
            direction = np.cos(angle) * x + np.sin(angle) * y
            waves += np.sin(2**octave * np.pi * direction + phase) / octave
        noise = rng.normal(size=waves.shape)
        image[:] = np.clip(127 + 70 * waves + 15 * noise, 0, 255)
    if channels not in ENCODED_CHANNELS:
        return images, []
    # JPEG changes pixels: the images are those that it decodes to.
    jpeg = tf.stack([tf.io.encode_jpeg(image) for image in images])
    images = np.stack([decode_image(encoded, channels).numpy() for encoded in jpeg])
    return images, [jpeg, tf.stack([tf.io.encode_png(image) for image in images])]


def _expected(model: keras.Model, images: np.ndarray, spec: tf.TensorSpec) -> np.ndarray:
    """Returns the model's own probabilities."""

    # As a graph, as `model.predict` runs it: run eagerly, a deep network's float32 rounding alone
    # comes near the tolerance.
    @tf.function(input_signature=[spec], autograph=False)
    def run(pixels: tf.Tensor) -> tf.Tensor:
        return model(pixels, training=False)

    logits = tf.cast(run(tf.cast(images, spec.dtype)), tf.float32)
    if logits.shape[:3] != images.shape[:3]:
        raise ExportError(
            "The model must return logits at the input's size. Received: logits of shape "
            f"{logits.shape} for images of shape {images.shape}"
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
    signature: Callable[..., dict[str, tf.Tensor]],
    inputs: dict[str, tf.Tensor],
    expected: np.ndarray,
    tolerance: float,
) -> None:
    try:
        outputs = signature(**inputs)
        labels, probabilities = outputs["labels"].numpy(), outputs["probabilities"].numpy()
    except (TypeError, ValueError, KeyError, tf.errors.OpError) as error:
        raise ExportError(f"{name} failed: {error}") from error
    check_difference(f"{name}:", probabilities, expected, tolerance)
    chosen = np.arange(expected.shape[-1]) == labels[..., None]
    largest = probabilities == probabilities.max(-1, keepdims=True)
    if chosen.shape != largest.shape or not (chosen & largest).any(-1).all():
        raise ExportError(f"{name}: labels differ from the classes of the largest probabilities")


def _compare_weights(model: keras.Model, signature: Callable) -> None:
    """Checks that each weight of the SavedModel is one of the model's.

    In the outputs of a saturated or untrained model a wrong weight may not show.
    """
    known = {_fingerprint(weight.numpy()) for weight in model.weights}
    for variable in signature.variables:
        if _fingerprint(variable.numpy()) not in known:
            raise ExportError(
                f"{SERVING_DEFAULT}: the variable {variable.name} of shape {variable.shape} has "
                "values that no weight of the model has"
            )


def _fingerprint(value: np.ndarray) -> tuple[tuple[int, ...], str, str]:
    digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
    return value.shape, str(value.dtype), digest
