"""Class weights from the frequencies of the classes."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_deeplab import validation
from keras_deeplab.labels import (
    WEIGHT_CAP,
    check_labels,
    checked_ignore_label,
    class_shares,
    median_frequency_weights,
)


def class_weights(
    labels: Iterable[Any],
    num_classes: int,
    method: str = "median",
    *,
    power: float = 1.0,
    ignore_label: int | None = 255,
    cap: float | None = WEIGHT_CAP,
) -> list[float]:
    """Computes weights that balance rare and frequent classes, for `CrossEntropy(class_weights=)`.

    - `"median"`: median frequency balancing. A class's frequency is its share of the pixels of the
      images that contain it; its weight is the median of all frequencies over its own.
    - `"inverse"`: the weight is 1 over the class's share of all pixels, scaled so that the mean
      weight of a pixel is 1 (before `power` and the cap).

    A class without pixels gets 0 and a warning.

    Args:
        labels: Label maps `(height, width)` or `(height, width, 1)`, batches of them, or pairs
            `(images, labels)`: a list, a generator, or a finite `tf.data.Dataset` such as
            `source.dataset("train")`. A map of rank 3 whose last axis is not 1 is a batch.
        num_classes: Number of classes, at least 2.
        method: `"median"` or `"inverse"`.
        power: Exponent of the weights, positive. 0.5 raises the recall of thin classes at a smaller
            cost in precision than 1.
        ignore_label: Label of the ignored pixels, or None if every pixel counts.
        cap: Largest weight, positive, or None for no limit. A class of a few hundred pixels would
            have a weight of thousands.

    Returns:
        One weight per class.

    Raises:
        ValueError: If an argument is out of its range, there is no valid pixel, or a label is
            neither a class nor the ignored one.

    Example:

    >>> maps = [np.array([[0, 0, 0, 1]]), np.array([[0, 0, 0, 0]])]
    >>> class_weights(maps, 2)  # frequencies 7/8 and 1/4, their median 9/16
    [0.642..., 2.25]
    >>> class_weights(maps, 2, method="inverse")
    [0.571..., 4.0]

    Reference:
        - [Predicting Depth, Surface Normals and Semantic Labels with a Common Multi-Scale
          Convolutional Architecture](https://arxiv.org/abs/1411.4734), its
          experiments on semantic labels: median frequency balancing.
    """
    _check(num_classes, method, power, cap)
    ignore_label = checked_ignore_label(ignore_label)
    counts = []
    for label_map in _label_maps(labels):
        classes, ignored = check_labels(label_map, num_classes, ignore_label)
        counts.append(np.bincount(classes[~ignored], minlength=num_classes))
    shares, where_present = class_shares(np.reshape(counts, (-1, num_classes)))
    weights = shares_to_weights(shares, where_present, method, power=power, cap=cap)
    if absent := np.flatnonzero(shares == 0).tolist():
        warnings.warn(f"No pixel of the classes {absent}: their weights are 0.", stacklevel=2)
    return weights


def shares_to_weights(
    shares: Sequence[float],
    where_present: Sequence[float],
    method: str = "median",
    *,
    power: float = 1.0,
    cap: float | None = WEIGHT_CAP,
) -> list[float]:
    """Computes the weights of `class_weights` from the frequencies of the classes.

    `shares` are of all valid pixels, `where_present` of those of the images that contain the class;
    a `data.SplitReport` of the audit has both.

    Example:

    >>> shares_to_weights([0.9, 0.1], [0.9, 0.3])
    [0.666..., 2.0]
    """
    shares, where_present = np.asarray(shares, float), np.asarray(where_present, float)
    _check(len(shares), method, power, cap)
    present = shares > 0
    if not present.any():
        raise ValueError("`labels` must contain at least one valid pixel. Received: none")
    if method == "median":
        weights = median_frequency_weights(np.where(present, where_present, 0))
    else:
        weights = np.zeros(len(shares))
        weights[present] = shares[present].sum() / (present.sum() * shares[present])
    return np.minimum(weights**power, np.inf if cap is None else cap).tolist()


def _check(num_classes: int, method: str, power: float, cap: float | None) -> None:
    validation.integer("num_classes", num_classes, minimum=2)
    validation.one_of("method", method, ("median", "inverse"))
    validation.positive("power", power)
    if cap is not None:
        validation.positive("cap", cap)


def _label_maps(labels: Iterable[Any]) -> Iterator[np.ndarray]:
    """Yields the label map of each image."""
    if isinstance(labels, tf.data.Dataset):
        if labels.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise validation.error("labels", "finite", labels, "The dataset repeats without end.")
        labels = labels.map(lambda *element: element[:2][-1])  # without copying the images
    for element in labels:
        maps = np.asarray(element[1] if isinstance(element, tuple) else element)
        if maps.ndim in (3, 4) and maps.shape[-1] == 1:
            maps = maps[..., 0]
        if maps.ndim not in (2, 3):
            raise ValueError(
                "`labels` must be label maps (height, width), batches of them or pairs with "
                f"images. Received: an element of shape {maps.shape}"
            )
        yield from maps if maps.ndim == 3 else [maps]
