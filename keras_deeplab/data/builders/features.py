"""The features of a segmentation data set in TensorFlow Datasets."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow_datasets as tfds


def features(classes: Sequence[str], image_format: str | None = None) -> tfds.features.FeaturesDict:
    """Returns the name, the image (in any format by default) and the label map as PNG."""
    return tfds.features.FeaturesDict(
        {
            "name": tfds.features.Text(),
            "image": tfds.features.Image(encoding_format=image_format),
            "label": tfds.features.LabeledImage(labels=list(classes), encoding_format="png"),
        }
    )
