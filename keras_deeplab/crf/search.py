"""Search of the constants of a dense CRF on validation images."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import keras
import numpy as np

from keras_deeplab.crf.dense_crf import PRESETS, DenseCRF, Kernels, checked_pair
from keras_deeplab.labels import check_labels, checked_ignore_label
from keras_deeplab.metrics import confusion_matrix, scores
from keras_deeplab.validation import error, integer, is_number, one_of

Sample = tuple[np.ndarray, np.ndarray, np.ndarray]

# Beside the ranges of the V1 paper (appearance weight 5 to 10, sigmas 50 to 100 and 3 to 10) weaker
# constants: a network with a decoder is hurt by smoothness of weight 3. Weights are last, as CRFs
# that differ in them alone share their kernels.
COARSE_GRID = {
    "appearance_sigma_xy": (10.0, 50.0),
    "appearance_sigma_rgb": (3.0, 9.0),
    "smoothness_weight": (0.3, 3.0),
    "appearance_weight": (1.0, 4.0),
}


@dataclass(frozen=True)
class SearchReport:
    """The result of `search`.

    Args:
        best: The CRF of the highest mean IoU.
        mean_iou: The mean IoU of each CRF that was tried.
        unrefined_mean_iou: That of the probabilities without a CRF.
    """

    best: DenseCRF
    mean_iou: dict[DenseCRF, float]
    unrefined_mean_iou: float

    def __str__(self) -> str:
        """The five best CRFs and their mean IoU."""
        best = sorted(self.mean_iou, key=self.mean_iou.get, reverse=True)[:5]
        rows = [f"{self.mean_iou[crf]:.4f}  {crf}" for crf in best]
        return "\n".join(["mean IoU", *rows, f"{self.unrefined_mean_iou:.4f}  without a CRF"])


def search(
    samples: Sequence[Sample],
    grid: Mapping[str, Sequence[float]] = COARSE_GRID,
    rounds: int = 3,
    start: DenseCRF = PRESETS["v2"],
    ignore_label: int | None = 255,
    verbose: str | int = "auto",
) -> SearchReport:
    """Searches the constants of a CRF with the highest mean IoU, coarse to fine.

    The first round tries all combinations of the values in the grid. Each further round changes one
    constant of the best at a time, by half the distance of the round before on a logarithmic scale:
    32 CRFs by default. Each takes about 2 seconds of processor time for an image of 480x360 with 11
    classes.

    Args:
        samples: `(image, probabilities, labels)` of images that the network was not trained on:
            image `(height, width, channels)` in 0..255, probabilities
            `(height, width, num_classes)` in 0..1, labels `(height, width)`. The paper took 100.
        grid: Positive values of constants of `DenseCRF`, but for `steps`. The paper keeps
            smoothness.
        rounds: Number of rounds.
        start: The CRF whose other constants are kept.
        ignore_label: Label of ignored pixels, or None.
        verbose: `"auto"` or 1 for a progress bar, 0 for silent.

    Returns:
        A `SearchReport`.

    Raises:
        ValueError: If there are no samples, their shapes do not fit, all pixels are ignored, or a
            value is out of range.

    Example:

    >>> samples = [
    ...     (image, keras_deeplab.predict(model, image, probabilities=True), truth)
    ...     for image, truth in zip(images, truths)
    ... ]
    >>> report = keras_deeplab.crf.search(samples)
    >>> report.best.appearance_weight, report.mean_iou[report.best]
    (5.0, 0.81)

    Reference:
        - [Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected CRFs](
          https://arxiv.org/abs/1412.7062), section 5
    """
    grids = _checked_grid(grid)
    integer("rounds", rounds)
    samples = [_checked_sample(*sample, checked_ignore_label(ignore_label)) for sample in samples]
    if not samples:
        raise error("samples", "non-empty", samples)
    unrefined = sum(_confusion(probabilities, labels) for _, probabilities, labels in samples)
    if not np.any(unrefined):
        raise error("samples", "with pixels that are not ignored", f"{len(samples)} images")
    crfs = [
        replace(start, **dict(zip(grids, values, strict=True)))
        for values in itertools.product(*grids.values())
    ]
    found: dict[DenseCRF, float] = {}
    for number in range(1, rounds + 1):
        found |= _mean_ious(
            samples, [crf for crf in dict.fromkeys(crfs) if crf not in found], verbose
        )
        best = max(found, key=found.get)
        crfs = [
            replace(best, **{name: getattr(best, name) * _step(values) ** shift})
            for name, values in grids.items()
            for shift in (-(0.5**number), 0.5**number)
        ]
    return SearchReport(best, found, scores(unrefined)["mean_iou"])


def _mean_ious(
    samples: Sequence[Sample], crfs: Sequence[DenseCRF], verbose: str | int
) -> dict[DenseCRF, float]:
    progress = keras.utils.Progbar(
        len(samples), verbose=1 if verbose == "auto" else verbose, unit_name="image"
    )
    confusions = dict.fromkeys(crfs, 0)
    for image, probabilities, labels in samples:
        kernels = Kernels(image)
        for crf in crfs:
            confusions[crf] += _confusion(crf.refined(kernels, probabilities), labels)
        progress.add(1)
    return {crf: scores(confusion)["mean_iou"] for crf, confusion in confusions.items()}


def _checked_grid(grid: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    names = [name for name in PRESETS["v1"].to_dict() if name != "steps"]
    for name, values in grid.items():
        one_of("grid", name, names)
        if not len(values) or not all(is_number(value) and value > 0 for value in values):
            raise error("grid", f"positive numbers of {name}", values)
    return {name: [float(value) for value in values] for name, values in grid.items()}


def _step(values: Sequence[float]) -> float:
    """The mean factor between neighbouring values."""
    return (max(values) / min(values)) ** (1 / max(1, len(set(values)) - 1))


def _checked_sample(
    image: np.ndarray, probabilities: np.ndarray, labels: np.ndarray, ignore_label: int | None
) -> Sample:
    """Returns a sample whose ignored labels are -1."""
    image, probabilities = checked_pair(image, probabilities)
    labels = np.asarray(labels)
    if labels.shape != image.shape[:2] or labels.dtype.kind not in "ui":
        rule = f"integers (height, width) of the image, {image.shape[:2]}"
        raise error("labels", rule, f"{labels.dtype} {labels.shape}")
    classes, ignored = check_labels(labels, probabilities.shape[-1], ignore_label)
    return image, probabilities, np.where(ignored, -1, classes)


def _confusion(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    counted = labels >= 0
    predicted = probabilities.argmax(-1)[counted]
    return confusion_matrix(labels[counted], predicted, probabilities.shape[-1])
