"""A source whose images and label maps are resized by one factor, as large photographs are."""

from __future__ import annotations

import tensorflow as tf

from keras_deeplab.data.source import DatasetInfo, Source
from keras_deeplab.files import digest
from keras_deeplab.layers import ResizeBy
from keras_deeplab.validation import positive


class Resized(Source):
    """A source at another scale.

    Images are resized as `layers.ResizeBy` does, label maps take the nearest pixel. A model that
    was trained on it predicts images of the original size as `MultiScale(model, (scale,))`, which
    resizes alike; `fit` does both by `Recipe.image_scale`. The audit judges the original images.

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
        self._resize = ResizeBy(self.scale, dtype="float32")

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
        height, width = (max(1, self._resize.scaled(side)) for side in size)
        return height, width

    def label_sizes(self, split: str) -> list[tuple[int, int]] | None:
        """Returns the `(height, width)` of the label maps (see `Source.label_sizes`)."""
        sizes = self.source.label_sizes(split)
        return sizes and [self.size(size) for size in sizes]

    def dataset(self, split: str, numbers: tf.data.Dataset | None = None) -> tf.data.Dataset:
        """Returns a split's decoded pairs (see `Source.dataset`)."""

        def resized(image: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            tf.debugging.assert_equal(
                tf.shape(image)[:2], tf.shape(label), "an image and its label map differ in size"
            )
            small = tf.round(self._resize(image[None])[0])
            label = tf.image.resize(label[..., None], tf.shape(small)[:2], "nearest")[..., 0]
            return tf.cast(small, image.dtype), label

        pairs = self.source.checked_dataset(split, numbers)
        return pairs.map(resized, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
