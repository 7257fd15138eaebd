"""The features of a segmentation data set in TensorFlow Datasets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow_datasets as tfds

# Of TFDS' feature `Image` and of PNG; other images are tensors.
IMAGE_CHANNELS = (1, 3, 4)


def features(
    classes: Sequence[str], image_format: str | None = None, channels: int = 3
) -> tfds.features.FeaturesDict:
    """Returns the name, the image (in any format by default) and the label map as PNG."""
    shape = (None, None, channels)
    if channels in IMAGE_CHANNELS:
        image = tfds.features.Image(shape=shape, encoding_format=image_format)
    else:
        image = tfds.features.Tensor(shape=shape, dtype=np.uint8, encoding="zlib")
    return tfds.features.FeaturesDict(
        {
            "name": tfds.features.Text(),
            "image": image,
            "label": tfds.features.LabeledImage(labels=list(classes), encoding_format="png"),
        }
    )
