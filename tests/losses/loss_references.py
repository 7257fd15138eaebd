"""The losses in plain NumPy and float64, pixel by pixel and set by set."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_deeplab import losses

CLASSES = 4
WEIGHTS = [1.0, 0.0, 2.5, 0.3]


def make_batch(seed: int = 0, shape: tuple[int, int, int] = (2, 5, 6)):
    """Labels with ignored pixels, without class 3 and in the second image without class 2."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, shape)
    labels[1] = np.minimum(labels[1], 1)
    labels[rng.random(shape) < 0.3] = 255
    logits = rng.normal(scale=2, size=(*shape, CLASSES)).astype(np.float32)
    pixel_weights = rng.uniform(0.2, 2, shape).astype(np.float32)
    return labels, logits, pixel_weights


def softmax(logits):
    powers = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def pixel_losses(labels, logits, class_weights=None, label_smoothing=0.0, gamma=0.0):
    """Loss times class weight, and class weight, of each pixel; 0 where ignored."""
    values, weights = np.zeros(labels.shape), np.zeros(labels.shape)
    probabilities = softmax(logits)
    for index in zip(*np.nonzero(labels != 255), strict=True):
        target = np.full(CLASSES, label_smoothing / CLASSES)
        target[labels[index]] += 1 - label_smoothing
        loss = -(target * np.log(probabilities[index])).sum()
        loss *= (1 - probabilities[index][labels[index]]) ** gamma
        weights[index] = 1 if class_weights is None else class_weights[labels[index]]
        values[index] = weights[index] * loss
    return values, weights


def pixel_mean(labels, logits, sample_weight=None, fraction=None, **options):
    values, weights = pixel_losses(labels, logits, **options)
    if fraction is not None:
        hardest = np.argsort(-values, axis=None)[: int(fraction * values.size)]
        taken = np.isin(np.arange(values.size), hardest).reshape(values.shape)
        values, weights = values * taken, weights * taken
    total = (values * (1 if sample_weight is None else sample_weight)).sum()
    return total / weights.sum() if weights.sum() else 0.0


def dice_of_class(errors_to, probabilities, weights, smooth):
    shared = (weights * errors_to * probabilities).sum()
    sizes = (weights * errors_to**2).sum() + (weights * probabilities**2).sum()
    return 1 - (2 * shared + smooth) / (sizes + smooth)


def lovasz_of_class(own, probabilities, weights, smooth=None):
    """The Lovász extension by its definition, from sets of wrong pixels."""
    errors = np.abs(own - probabilities)

    def jaccard_loss(wrong: list[int]) -> float:
        together = set(np.flatnonzero(own)) | set(wrong)
        return weights[wrong].sum() / weights[list(together)].sum() if wrong else 0.0

    total, wrong = 0.0, []
    for pixel in np.argsort(-errors):
        before = jaccard_loss(wrong)
        wrong.append(pixel)
        total += errors[pixel] * (jaccard_loss(wrong) - before)
    return total


def region_mean(
    labels, logits, sample_weight=None, of_class=None, classes="present", per_image=False, smooth=0
):
    weight = np.ones(labels.shape) if sample_weight is None else sample_weight.astype(np.float64)
    probabilities = softmax(logits)
    groups = [slice(i, i + 1) for i in range(len(labels))] if per_image else [slice(None)]
    means = []
    for group in groups:
        valid = labels[group] != 255
        truth, found = labels[group][valid], probabilities[group][valid]
        each = [
            of_class((truth == c).astype(float), found[:, c], weight[group][valid], smooth)
            for c in range(CLASSES)
            if truth.size and (classes == "all" or (truth == c).any())
        ]
        means += [np.mean(each)] if each else []
    return np.mean(means) if means else 0.0


def finite_differences(function, logits, step=1e-5):
    """The gradient of a function of logits, in float64."""
    logits = logits.astype(np.float64)
    gradient = np.zeros_like(logits)
    for index in np.ndindex(*logits.shape):
        ends = []
        for sign in (1, -1):
            moved = logits.copy()
            moved[index] += sign * step
            ends.append(function(moved))
        gradient[index] = (ends[0] - ends[1]) / (2 * step)
    return gradient


def weighted_sum(labels, logits, sample_weight=None, **options):
    return 0.5 * pixel_mean(labels, logits, sample_weight, class_weights=WEIGHTS) + 2 * region_mean(
        labels, logits, sample_weight, lovasz_of_class
    )


class Case(NamedTuple):
    """A loss, its options and the function that it equals."""

    kind: type[keras.losses.Loss]
    numpy: Callable[..., float]
    options: dict[str, Any]

    def loss(self, **more: Any) -> keras.losses.Loss:
        return self.kind(**self.options, **more)

    def expected(self, labels, logits, sample_weight=None) -> float:
        return self.numpy(labels, logits, sample_weight, **self.options)


CROSS_ENTROPY = losses.CrossEntropy, pixel_mean
MINING = losses.HardPixelMining, pixel_mean
FOCAL = losses.Focal, pixel_mean
DICE = losses.Dice, partial(region_mean, of_class=dice_of_class)
LOVASZ = losses.LovaszSoftmax, partial(region_mean, of_class=lovasz_of_class)
SUMMANDS = [losses.CrossEntropy(class_weights=WEIGHTS), losses.LovaszSoftmax()]
WEIGHTED = {"class_weights": WEIGHTS}
CASES = {
    "cross_entropy": Case(*CROSS_ENTROPY, {}),
    "weights_and_smoothing": Case(*CROSS_ENTROPY, {"label_smoothing": 0.2, **WEIGHTED}),
    "hard_pixels": Case(*MINING, {"fraction": 0.3}),
    "hard_weighted": Case(*MINING, {"fraction": 0.4, "label_smoothing": 0.1, **WEIGHTED}),
    "focal": Case(*FOCAL, {"gamma": 2}),
    "focal_weighted": Case(*FOCAL, {"gamma": 0.5, "label_smoothing": 0.1, **WEIGHTED}),
    "dice": Case(*DICE, {}),
    "dice_per_image": Case(*DICE, {"per_image": True}),
    "dice_all": Case(*DICE, {"classes": "all", "smooth": 1.5, "per_image": True}),
    "lovasz": Case(*LOVASZ, {}),
    "lovasz_per_image": Case(*LOVASZ, {"per_image": True}),
    "lovasz_all": Case(*LOVASZ, {"classes": "all", "per_image": True}),
    "sum": Case(losses.Sum, weighted_sum, {"losses": SUMMANDS, "weights": [0.5, 2]}),
}
