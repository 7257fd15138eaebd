"""A source whose images and label maps are resized by one factor, as large photographs are."""

from __future__ import annotations

import tensorflow as tf

from keras_deeplab.data.source import DatasetInfo, Source
from keras_deeplab.files import digest
from keras_deeplab.validation import positive


class Resized(Source):
    """A source at another scale.

    Images become the means of the areas of their new pixels, or are interpolated bilinearly by
    factors above 1; label maps take the nearest pixel. A model that was trained on it predicts
    images of the original size as `MultiScale(model, (scale,))`; `fit` does both by
    `Recipe.image_scale`.

    Args:
        source: The source.
        scale: Factor of height and width.

    Raises:
        ValueError: If the factor is not a positive number.

    Example:

    >>> source = keras_deeplab.data.Resized(keras_deeplab.data.Shapes(train=9, val=3), 0.5)
    >>> image, label = next(source.dataset("train").as_numpy_iterator())
    >>> image.shape, label.shape
    ((52, 48, 3), (52, 48))
    """

    def __init__(self, source: Source, scale: float) -> None:
        self.source = source
        self.scale = positive("scale", scale)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits of the source."""
        return self.source.splits

    @property
    def info(self) -> DatasetInfo:
        """The classes and their colours."""
        return self.source.info

    def names(self, split: str) -> list[str]:
        """Returns the names of a split's images, in the order of `dataset(split)`."""
        return self.source.names(split)

    def fingerprint(self) -> str:
        """Identifies the source and the factor."""
        return digest([self.source.fingerprint(), self.scale])

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size that an image of a size `(height, width)` gets."""
        height, width = (max(1, round(side * self.scale)) for side in size)
        return height, width

    def dataset(self, split: str, numbers: tf.data.Dataset | None = None) -> tf.data.Dataset:
        """Returns a split's decoded pairs (see `Source.dataset`)."""
        method = "area" if self.scale < 1 else "bilinear"

        def resized(image: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            sides = tf.cast(tf.shape(label), tf.float64) * self.scale
            size = tf.maximum(1, tf.cast(tf.round(sides), tf.int32))
            image = tf.round(tf.image.resize(image, size, method))
            label = tf.image.resize(label[..., None], size, "nearest")[..., 0]
            return tf.cast(image, tf.uint8), label

        pairs = self.source.checked_dataset(split, numbers)
        return pairs.map(resized, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
