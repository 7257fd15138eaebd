"""Class weights from how often the classes occur."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_deeplab.labels import check_labels, checked_ignore_label

METHODS = ("median", "inverse")


def class_weights(
    labels: Iterable[Any],
    num_classes: int,
    method: str = "median",
    *,
    power: float = 1.0,
    ignore_label: int | None = 255,
    cap: float | None = 10.0,
) -> list[float]:
    """Computes weights that give rare classes a say, for `CrossEntropy(class_weights=...)`.

    - `"median"`: a class's frequency is its share of the pixels of the images that hold it; its
      weight is the median of all frequencies over its own.
    - `"inverse"`: the weight is 1 over the class's share of all pixels, scaled so that the mean
      weight of a pixel is 1 (before the cap).

    At `power=0.5` it is their square root: thin classes are found more often, and large ones lost
    less than by the full weights, which call far too much a rare class for a good IoU.

    Weights above `cap` become `cap`: a class of a few hundred pixels would otherwise have a weight
    of thousands. A class without a pixel gets 0, and a warning names it.

    Args:
        labels: Label maps `(height, width)` or `(height, width, 1)`, or batches of them, or pairs
            `(images, labels)`: a list, a generator, or a finite `tf.data.Dataset` such as
            `source.dataset("train")`. A map of rank 3 whose last axis is not 1 is a batch.
        num_classes: Number of classes, at least 2.
        method: `"median"` or `"inverse"`.
        power: Exponent of the weights, above 0.
        ignore_label: Label of the pixels that do not count, or None where every pixel counts.
        cap: Largest weight, above 0, or None for no limit.

    Returns:
        One weight per class.

    Raises:
        ValueError: If an argument is out of its range, there is no pixel that counts, or a label
            is neither a class nor the ignored one.

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
    pixels, where_present = np.zeros(num_classes, np.int64), np.zeros(num_classes, np.int64)
    for label_map in _label_maps(labels):
        counts = _counts(label_map, num_classes, ignore_label)
        pixels += counts
        where_present += np.where(counts > 0, counts.sum(), 0)
    shares = pixels / max(1, pixels.sum())
    return shares_to_weights(
        shares, pixels / where_present.clip(min=1), method, power=power, cap=cap
    )


def shares_to_weights(
    shares: Sequence[float],
    where_present: Sequence[float],
    method: str = "median",
    *,
    power: float = 1.0,
    cap: float | None = 10.0,
) -> list[float]:
    """Computes the weights of `class_weights` from how often classes occur, where that is known.

    Args:
        shares: Each class's share of all pixels that count.
        where_present: Each class's share of the pixels of the images that hold it. A
            `data.SplitReport` of the audit has both.
        method: As in `class_weights`, like the next two.
        power: Exponent of the weights.
        cap: Largest weight.

    Returns:
        One weight per class.

    Raises:
        ValueError: If an argument is out of its range, or no class occurs.

    Example:

    >>> shares_to_weights([0.9, 0.1], [0.9, 0.3])
    [0.666..., 2.0]
    """
    shares, where_present = np.asarray(shares, float), np.asarray(where_present, float)
    _check(len(shares), method, power, cap)
    present = shares > 0
    if not present.any():
        raise ValueError("labels must hold at least one pixel that counts; received none")
    if not present.all():
        absent = np.flatnonzero(~present).tolist()
        warnings.warn(f"no pixel of the classes {absent}: their weights are 0", stacklevel=3)
    weights = np.zeros(len(shares))
    if method == "median":
        weights[present] = np.median(where_present[present]) / where_present[present]
    else:
        weights[present] = shares[present].sum() / (present.sum() * shares[present])
    return (weights**power).clip(max=cap).tolist()


def _check(num_classes: int, method: str, power: float, cap: float | None) -> None:
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}; received {method!r}")
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2; received {num_classes}")
    if not power > 0:
        raise ValueError(f"power must be above 0; received {power}")
    if cap is not None and not cap > 0:
        raise ValueError(f"cap must be above 0 or None; received {cap}")


def _label_maps(labels: Iterable[Any]) -> Iterator[np.ndarray]:
    """Yields the label map of each image."""
    if isinstance(labels, tf.data.Dataset):
        if labels.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise ValueError("labels must be finite; received a dataset that repeats forever")
        labels = labels.map(lambda *element: element[:2][-1])  # images are not brought over
    for element in labels:
        maps = np.asarray(element[1] if isinstance(element, tuple) else element)
        if maps.ndim in (3, 4) and maps.shape[-1] == 1:
            maps = maps[..., 0]
        if maps.ndim not in (2, 3):
            raise ValueError(
                "labels must be label maps (height, width), batches of them or pairs with images; "
                f"received an element of shape {maps.shape}"
            )
        yield from maps if maps.ndim == 3 else [maps]


def _counts(label_map: np.ndarray, num_classes: int, ignore_label: int | None) -> np.ndarray:
    """Returns how many pixels of each class a label map holds."""
    classes, ignored = check_labels(label_map, num_classes, ignore_label)
    return np.bincount(classes[~ignored], minlength=num_classes)
