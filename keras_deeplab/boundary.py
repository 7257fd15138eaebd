"""Scores along boundaries: boundary IoU and trimap mean IoU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from keras_deeplab.labels import check_labels, checked_ignore_label
from keras_deeplab.metrics import by_name, checked_names, confusion_matrix, ious, number, scores
from keras_deeplab.validation import fraction, integer, integers

WIDTHS = (1, 2, 4, 8, 16, 32)
DILATION_RATIO = 0.02


def boundary_distances(labels: np.ndarray) -> np.ndarray:
    """Counts the dilations by 3 x 3 pixels from the pixels beside another label to each pixel."""
    from scipy import ndimage  # here, as it takes time

    differs = ndimage.maximum_filter(labels, 3) != ndimage.minimum_filter(labels, 3)
    if not differs.any():
        return np.full(labels.shape, np.inf)
    return ndimage.distance_transform_cdt(~differs, "chessboard")


def near_boundary(distances: np.ndarray, distance: int, at_border: bool = False) -> np.ndarray:
    """Finds the pixels with a pixel of another label, or the border, within `distance` dilations.

    `distances` are the `boundary_distances` of the labels.
    """
    near = distances < distance
    if at_border:
        near[:distance] = near[-distance:] = True
        near[:, :distance] = near[:, -distance:] = True
    return near


class BoundaryScores:
    """Computes boundary IoU, and mean IoU in bands along boundaries, over a data set.

    - Boundary IoU of a class: the IoU of its pixels near the boundary of the true region and near
      that of the predicted region, at most `dilation_ratio` of the image's diagonal away (at least
      one pixel). The image's border is a boundary. Intersections and unions are added up over the
      data set, as for IoU.
    - Trimap mean IoU: the mean IoU over the pixels within a distance of a boundary between two
      labels in the truth. The ignored label is a label here: where it is drawn around all objects,
      as in PASCAL VOC, these are the bands around it that the DeepLab papers dilate.

    Ignored pixels do not count: the prediction is set to ignored there too, so that it moves no
    boundary.

    Args:
        num_classes: Number of classes, at least 2.
        class_names, ignore_label: As of `evaluation.evaluate`.
        widths: Widths of the bands in pixels, to one side of the boundary.
        dilation_ratio: Width of boundary IoU's bands as a share of the diagonal.

    Raises:
        ValueError: If an argument is out of its range; in `update` also if the shapes differ or a
            label is neither a class nor the ignored one.

    Example:

    >>> boundary = BoundaryScores(2, ["sky", "ground"], widths=[1])
    >>> boundary.update(np.array([[0, 0, 0, 1, 1]]), np.array([[0, 0, 1, 1, 1]]))
    >>> boundary.result()["trimap_mean_iou"]  # one of the two pixels at the boundary is right
    {'1': 0.25}

    Reference:
        [Cheng et al., 2021, Boundary IoU](https://arxiv.org/abs/2103.16562); trimaps:
        [Chen et al., 2018, DeepLabV3+](https://arxiv.org/abs/1802.02611), section 4.4.
    """

    def __init__(
        self,
        num_classes: int,
        class_names: Sequence[str] | None = None,
        ignore_label: int | None = 255,
        widths: Sequence[int] = WIDTHS,
        dilation_ratio: float = DILATION_RATIO,
    ):
        self.num_classes = integer("num_classes", num_classes, minimum=2)
        self.class_names = checked_names(num_classes, class_names)
        self.ignore_label = checked_ignore_label(ignore_label)
        self.widths = integers("widths", widths)
        self.dilation_ratio = fraction("dilation_ratio", dilation_ratio, below_one=True)
        # With a last class for the pixels away from the boundary.
        self._borders = np.zeros((num_classes + 1, num_classes + 1), np.int64)
        self._bands = np.zeros((len(self.widths), num_classes, num_classes), np.int64)

    def update(self, truth: np.ndarray, predicted: np.ndarray) -> None:
        """Adds an image: its labels and the predicted ones, both `(height, width)`."""
        truth, predicted = np.asarray(truth), np.asarray(predicted)
        if truth.ndim != 2 or truth.shape != predicted.shape:
            raise ValueError(
                "`truth` and `predicted` must be label maps (height, width) of one size. "
                f"Received: shapes {truth.shape} and {predicted.shape}"
            )
        truth, ignored = check_labels(truth, self.num_classes, self.ignore_label, "truth")
        predicted = np.where(ignored, 0, predicted)
        predicted, _ = check_labels(predicted, self.num_classes, None, "predicted")
        truth, predicted = (np.where(ignored, self.num_classes, m) for m in (truth, predicted))
        distance = max(1, round(self.dilation_ratio * float(np.hypot(*truth.shape))))
        distances = [boundary_distances(labels) for labels in (truth, predicted)]
        borders = (
            np.where(near_boundary(each, distance, at_border=True), labels, self.num_classes)
            for labels, each in zip((truth, predicted), distances, strict=True)
        )
        self._borders += confusion_matrix(*borders, self.num_classes + 1)
        for confusion, width in zip(self._bands, self.widths, strict=True):
            band = near_boundary(distances[0], width) & ~ignored
            confusion += confusion_matrix(truth[band], predicted[band], self.num_classes)

    def result(self) -> dict:
        """Returns the scores of all images added, as a dict that can be written as JSON.

        `boundary_mean_iou`, `boundary_per_class` (class name to boundary IoU, None for a class
        neither in the truth nor predicted) and `trimap_mean_iou` (the width of the band, a string,
        to the mean IoU in it, None for a band without pixels).
        """
        hits = np.diag(self._borders)
        union = self._borders.sum(0) + self._borders.sum(1) - hits
        areas = (tf.constant(area[:-1], tf.float64) for area in (hits, union))
        mean, per_class, _ = ious(*areas)
        return {
            "boundary_mean_iou": number(mean.numpy()),
            "boundary_per_class": by_name(per_class.numpy(), self.class_names),
            "trimap_mean_iou": {
                str(width): scores(confusion)["mean_iou"]
                for width, confusion in zip(self.widths, self._bands, strict=True)
            },
        }
