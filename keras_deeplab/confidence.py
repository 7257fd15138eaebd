"""Confidence of the prediction at each pixel, and its calibration error."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_deeplab.inference import ImageLike, predict
from keras_deeplab.models import MultiScale
from keras_deeplab.validation import error

BINS = 15  # as in section 2 of the paper of `CalibrationError`

# Beside the models, as the compiled functions are, which belong to these networks.
_VIEWS: weakref.WeakKeyDictionary[MultiScale, keras.Model] = weakref.WeakKeyDictionary()


def entropy(probabilities: np.ndarray) -> np.ndarray:
    """Computes the entropy of the predicted classes, as a share of the largest possible one.

    Args:
        probabilities: Probabilities `(..., num_classes)` in 0..1, as of
            `predict(..., probabilities=True)`.

    Returns:
        Float32 `(...)` in 0..1: 0 for one certain class, 1 for equal probabilities.

    Raises:
        ValueError: If there are fewer than 2 classes or values outside 0..1.

    Example:

    >>> keras_deeplab.confidence.entropy([[1.0, 0.0], [0.5, 0.5]])
    array([0., 1.], dtype=float32)
    """
    p = _checked(probabilities)
    surprise = -np.log(np.maximum(p, np.finfo(np.float32).tiny))  # 0 log 0 is 0
    total = np.einsum("...c,...c->...", p, surprise)
    return np.clip(total / math.log(p.shape[-1]), 0, 1)


def margin(probabilities: np.ndarray) -> np.ndarray:
    """Computes the difference between the two largest probabilities.

    Args:
        probabilities: Probabilities `(..., num_classes)` in 0..1.

    Returns:
        Float32 `(...)` in 0..1: 1 for one certain class, 0 for two equally probable ones.

    Raises:
        ValueError: If there are fewer than 2 classes or values outside 0..1.

    Example:

    >>> keras_deeplab.confidence.margin([[0.75, 0.25, 0.0], [0.5, 0.0, 0.5]])
    array([0.5, 0. ], dtype=float32)
    """
    p = _checked(probabilities)
    largest = np.partition(p, -2, axis=-1)[..., -2:]
    return largest[..., 1] - largest[..., 0]


def disagreement(model: MultiScale, image: ImageLike, **options: Any) -> np.ndarray:
    """Computes how far the views of test-time augmentation disagree about each pixel.

    The measure is the mutual information between class and view: the entropy of the mean of the
    views' probabilities less the mean of their entropies. It is high where views are certain of
    different classes, and low where all are equally uncertain.

    Args:
        model: A `MultiScale` of at least two views (scales, mirrored images).
        image: As of `predict`.
        options: `window`, `overlap` and `verbose` of `predict`.

    Returns:
        Float32 `(height, width)`, or `(batch, height, width)` for a batch, in 0..1 in units of
        `entropy`.

    Raises:
        ValueError: If the model is not such a `MultiScale`; else as of `predict`.

    Example:

    >>> network = keras_deeplab.DeepLabV3(3, "mobilenet_v2")
    >>> model = keras_deeplab.MultiScale(network, (0.5, 1.0), fusion="mean")
    >>> keras_deeplab.confidence.disagreement(model, np.zeros((33, 65, 3), "uint8")).shape
    (33, 65)

    Reference:
        [Houlsby et al., 2011, BALD](https://arxiv.org/abs/1112.5745), section 2; over dropout
        samples in [Kendall and Gal, 2017](https://arxiv.org/abs/1703.04977).
    """
    network, count = view_network(model) if isinstance(model, MultiScale) else (model, 1)
    if count == 1:
        raise error("model", "a MultiScale of at least two views", model)
    # Of `count` views that each sum to 1 the softmax over all is each divided by `count`.
    p = count * predict(network, image, probabilities=True, **options)
    p = np.clip(p.reshape(*p.shape[:-1], count, -1), 0, 1)
    return np.maximum(entropy(p.mean(-2)) - entropy(p).mean(-1), 0)


def view_network(model: MultiScale) -> tuple[keras.Model, int]:
    """Returns a network from images to the log probabilities of each view, and their number.

    The views' classes are one after the other on the last axis.
    """
    count = model.num_views
    if model not in _VIEWS:
        outputs = model.training_graph.outputs[1:]  # after the fused logits
        views = outputs[:: len(outputs) // count]  # without those of an auxiliary head
        logarithms = [ops.log_softmax(logits) for logits in views]
        _VIEWS[model] = keras.Model(model.inputs[0], ops.concatenate(logarithms, -1))
    return _VIEWS[model], count


class CalibrationError:
    """Computes the expected calibration error over a data set, from 15 bins of confidence.

    The confidence of a pixel is its largest probability. Of calibrated probabilities 80 % of the
    pixels with a confidence of 0.8 are right. The error is the difference between the mean
    confidence and the accuracy of a bin, averaged over the pixels.

    Example:

    >>> calibration = keras_deeplab.confidence.CalibrationError()
    >>> calibration.update(np.array([0.75, 0.75]), np.array([True, False]))
    >>> calibration.result()["expected_calibration_error"]
    0.25

    Reference:
        [Guo et al., 2017](https://arxiv.org/abs/1706.04599), section 2, equation 3.
    """

    def __init__(self) -> None:
        self._sums = np.zeros((3, BINS))  # pixels, confidence, right pixels

    def update(self, confidence: np.ndarray, correct: np.ndarray) -> None:
        """Adds valid pixels: their confidence in 0..1, and whether the prediction is right."""
        confidence = np.ravel(confidence).astype(np.float64)
        if confidence.size and not (confidence.min() >= 0 and confidence.max() <= 1 + 1e-3):
            interval = f"{confidence.min()}..{confidence.max()}"
            raise error("confidence", "in 0..1; NaN comes from a model with NaN weights", interval)
        bins = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
        for sums, weights in zip(self._sums, (None, confidence, np.ravel(correct)), strict=True):
            sums += np.bincount(bins, weights, BINS)

    def result(self) -> dict[str, Any]:
        """Returns the scores of all pixels added, as a dict that can be written as JSON.

        `expected_calibration_error` (None without pixels) and `reliability`: for each bin with
        pixels, from low to high, its `confidence`, `accuracy` and number of `pixels`.
        """
        sums = self._sums[:, self._sums[0] > 0]
        pixels, confidence, correct = sums
        total = float(np.abs(confidence - correct).sum() / pixels.sum()) if pixels.size else None
        rows = zip(confidence / pixels, correct / pixels, pixels, strict=True)
        return {
            "expected_calibration_error": total,
            "reliability": [
                {"confidence": float(mean), "accuracy": float(share), "pixels": int(count)}
                for mean, share, count in rows
            ],
        }


def labels_with(measure: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function from probabilities to labels and a measure, `(..., 2)` in float32."""
    return lambda p: np.stack([p.argmax(-1), measure(p)], -1).astype(np.float32)


def _checked(probabilities: np.ndarray) -> np.ndarray:
    p = np.asarray(probabilities, np.float32)
    if not p.ndim or p.shape[-1] < 2:
        raise error("probabilities", "of the shape (..., num_classes), 2 or more", p.shape)
    if p.size and not (p.min() >= 0 and p.max() <= 1 + 1e-4):
        raise error("probabilities", "in 0..1", (float(p.min()), float(p.max())))
    return p
