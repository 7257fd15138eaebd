"""Temperature scaling: probabilities that are as high as the predictions are right."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers as kl

from keras_deeplab import layers
from keras_deeplab.confidence import CalibrationError, view_network
from keras_deeplab.evaluation import check_images, pair_batches
from keras_deeplab.files import atomic_write, stored_bytes
from keras_deeplab.graph.network import Call, functional, is_network, layer_error, top_level_calls
from keras_deeplab.inference import logits_of, logits_spec
from keras_deeplab.labels import check_labels, checked_ignore_label, fit_labels
from keras_deeplab.models import MultiScale
from keras_deeplab.models.multi_scale import multi_scales, unwrapped
from keras_deeplab.runtimes import pixels_as
from keras_deeplab.validation import error, integer

logger = logging.getLogger(__name__)

VALUES = 2**22  # logits of the sampled pixels
RANGE = (0.05, 20.0)  # of the temperature
_PREDICTORS = (kl.Conv2D, kl.Conv2DTranspose, kl.Dense)
# A multiple of the input is the same multiple of the output.
_PROPORTIONAL = (
    *(layers.ResizeLike, layers.CropLike, kl.UpSampling2D, kl.Cropping2D, kl.ZeroPadding2D),
    *(kl.Add, kl.Average, kl.Identity, kl.Dropout, kl.SpatialDropout2D),
)
_REFERENCED = (layers.ResizeLike, layers.CropLike)  # their second input has the size only


def calibrate(
    model: keras.Model, dataset: tf.data.Dataset, ignore_label: int | None = 255, seed: int = 0
) -> dict[str, Any]:
    """Fits a temperature on labelled images and divides the logits of a model by it, in place.

    As segmentation heads end in linear convolutions, resizing and sums, the kernels and biases of
    the last layers are divided: labels stay the same (but for a few where views are averaged), and
    files and exports of the model need no further operation. Of a `MultiScale` the model inside is
    scaled, so that the probabilities of `MultiScale` itself fit. An auxiliary head of training is
    scaled alike.

    Args:
        model: Segmentation model that ends in linear layers, or one `MultiScale` around such a
            model.
        dataset: As of `evaluate`; images that the model was not trained on. Of images too large
            for the memory take parts (`part_size` of `data.evaluation_dataset`).
        ignore_label: Label of ignored pixels, or None.
        seed: Integer from which the sample of pixels is drawn.

    Returns:
        The report of `fit_temperature`.

    Raises:
        ValueError: If a layer between the last linear layers and the logits is not linear; else
            as of `fit_temperature`.

    Example:

    >>> report = keras_deeplab.calibrate(model, dataset)
    >>> model.save("calibrated.keras")

    Reference:
        [Guo et al., 2017](https://arxiv.org/abs/1706.04599), section 4.2.
    """
    network = unwrapped(model)
    last_layers(network)  # an error before the fit, which takes long
    report = fit_temperature(model, dataset, ignore_label, seed)
    divide_logits(network, report["temperature"])
    return report


def write_calibrated(model: keras.Model, dataset: tf.data.Dataset, path: Path) -> dict[str, Any]:
    """Calibrates a model and writes it to a `.keras` file; logs and returns the report."""
    report = calibrate(model, dataset)
    with atomic_write(path, stored_bytes(model)) as temporary:
        model.save(temporary)
    errors = report["expected_calibration_error"]
    logger.info(
        "Wrote %s: logits divided by %.3f, expected calibration error %.4f (before: %.4f)",
        *(path, report["temperature"], errors["after"], errors["before"]),
    )
    return report


def divide_logits(model: keras.Model, temperature: float) -> None:
    """Divides the logits of a model by a number in place, in the weights of its last layers."""
    for layer in last_layers(model):
        for weight in (layer.kernel, layer.bias):
            if weight is not None:
                weight.assign(weight / temperature)


def fit_temperature(
    model: keras.Model, dataset: tf.data.Dataset, ignore_label: int | None = 255, seed: int = 0
) -> dict[str, Any]:
    """Finds the temperature of the lowest negative log-likelihood; the model stays as it is.

    It is fitted on an evenly drawn sample of the valid pixels, of 4 million logits at most.

    Args:
        model: Segmentation model, or a `MultiScale` around one. Of `"mean"` each view's logits are
            divided.
        dataset, ignore_label, seed: As of `calibrate`.

    Returns:
        A dict that can be written as JSON: `temperature` (in 0.05..20; above 1 the model was
        overconfident), `pixels` (of the sample), and `negative_log_likelihood` and
        `expected_calibration_error` on the sample, each with the values `before` and `after`.

    Raises:
        ValueError: If the dataset has no valid pixels, is infinite or has other elements, or the
            model has a `MultiScale` of means inside, or a label is out of range.

    Example:

    >>> report = keras_deeplab.calibration.fit_temperature(model, dataset)
    >>> report["temperature"]
    1.32
    """
    from scipy.optimize import minimize_scalar  # here, as it takes time

    if not isinstance(model, keras.Model):
        raise error("model", "a keras.Model", model)
    if any(inside.fusion == "mean" for inside in list(multi_scales(model))[1:]):
        raise error("model", "a single MultiScale of means, not one inside another", model)
    ignore_label, seed = checked_ignore_label(ignore_label), integer("seed", seed, 0)
    logits, truth = _sample(model, pair_batches(dataset), ignore_label, seed)
    if not truth.size:
        raise error("dataset", "of images with pixels that are not ignored", dataset)

    def loss(log_temperature: float) -> float:
        chosen = _log_probabilities(logits, math.exp(log_temperature))
        return -float(np.take_along_axis(chosen, truth[:, None], 1).mean(dtype=np.float64))

    if not np.isfinite(logits).all():
        raise error("model", "one with finite logits", "NaN or infinity")
    bounds = tuple(map(math.log, RANGE))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    best = float(found.x)
    if any(abs(best - math.log(bound)) < 0.1 for bound in RANGE):
        logger.warning(
            "The temperature %.3g is at the end of its range %g..%g: do the labels fit the model?",
            *(math.exp(best), *RANGE),
        )
    errors = []
    for value in (0.0, best):
        probabilities = np.exp(_log_probabilities(logits, math.exp(value)))
        measured = CalibrationError()
        measured.update(probabilities.max(-1), probabilities.argmax(-1) == truth)
        errors.append(measured.result()["expected_calibration_error"])
    return {
        "temperature": math.exp(best),
        "pixels": truth.size,
        "negative_log_likelihood": {"before": loss(0.0), "after": loss(best)},
        "expected_calibration_error": dict(zip(("before", "after"), errors, strict=True)),
    }


def _sample(
    model: keras.Model, dataset: tf.data.Dataset, ignore_label: int | None, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draws valid pixels of all images evenly: logits `(pixels, views, classes)` and labels.

    Each pixel gets a random key, and those with the smallest keys are kept.
    """
    (spec, num_classes), (network, views) = logits_spec(model), (model, 1)
    if isinstance(model, MultiScale) and model.fusion == "mean":
        network, views = view_network(model)
    values, limit = views * num_classes, VALUES // (views * num_classes)

    @tf.function(
        input_signature=[tf.TensorSpec(spec.shape, spec.dtype), tf.TensorSpec([None], tf.int64)],
        autograph=False,
    )
    def logits_at(images: tf.Tensor, pixels: tf.Tensor) -> tf.Tensor:
        return tf.gather(tf.reshape(logits_of(network, images), [-1, values]), pixels)

    rng = np.random.default_rng(seed)
    logits, labels = np.empty((0, values), np.float32), np.empty(0, np.int64)
    keys, bound = np.empty(0), 1.0
    for images, truth in dataset:
        check_images(images, spec)
        truth = fit_labels(truth, images)
        truth, ignored = check_labels(np.ravel(truth), num_classes, ignore_label)
        drawn = rng.random(truth.size)
        chosen = np.flatnonzero(~ignored & (drawn < bound))
        chosen = chosen[np.argsort(drawn[chosen], kind="stable")[:limit]]
        found = logits_at(pixels_as(spec.dtype, images), chosen).numpy()
        keys = np.concatenate([keys, drawn[chosen]])
        logits, labels = np.concatenate([logits, found]), np.concatenate([labels, truth[chosen]])
        if keys.size > limit:
            kept = np.argpartition(keys, limit)[:limit]
            keys, logits, labels = keys[kept], logits[kept], labels[kept]
            bound = keys.max()
    return logits.reshape(-1, views, num_classes), labels


def _log_probabilities(logits: np.ndarray, temperature: float) -> np.ndarray:
    """The logarithm of the mean over the views of their probabilities."""
    scaled = logits / np.float32(temperature)
    scaled -= scaled.max(-1, keepdims=True)
    scaled -= np.log(np.exp(scaled).sum(-1, keepdims=True))
    return np.logaddexp.reduce(scaled, 1) - np.float32(math.log(scaled.shape[1]))


def last_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """Returns the layers whose kernels and biases the logits are proportional to, or raises."""
    network = getattr(model, "training_graph", None) or functional(model)
    found = {id(layer): layer for tensor in network.outputs for layer in _before(tensor, network)}
    return list(found.values())


def _before(
    tensor: keras.KerasTensor, network: keras.Model, prefix: str = ""
) -> Iterator[keras.layers.Layer]:
    """Walks back from a tensor of a network to the last linear layers."""
    calls = top_level_calls(network, prefix)
    call = next((c for c in calls if any(tensor is output for output in c.outputs)), None)
    operation = call.operation if call else None
    readers = [other for other in calls if any(value is tensor for value in _scaled(other))]
    layer = operation if len(readers) < 2 else None  # others would get the divided values too
    is_linear = getattr(layer, "activation", None) is keras.activations.linear
    is_used_once = [other.operation is layer for other in calls].count(True) == 1
    if layer and is_network(layer) and is_used_once:
        inner = functional(layer)
        place = [tensor is output for output in call.outputs].index(True)
        yield from _before(inner.outputs[place], inner, f"{call.path}/")
    elif isinstance(layer, _PROPORTIONAL) or (isinstance(layer, kl.Activation) and is_linear):
        for value in _scaled(call):
            yield from _before(value, network, prefix)
    elif isinstance(layer, _PREDICTORS) and is_linear and is_used_once:
        yield layer
    else:
        path = call.path if call else tensor.name
        rule = (
            "logits that come from convolutions without activation, used once, by resizing and sums"
        )
        raise layer_error(rule, path, f"({type(operation).__name__}) is none of these.")


def _scaled(call: Call) -> Sequence[keras.KerasTensor]:
    """The inputs of a call whose values it uses, not the size only."""
    return call.inputs[: 1 if isinstance(call.operation, _REFERENCED) else None]
