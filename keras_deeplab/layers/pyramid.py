"""Spatial pyramid pooling."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from keras_deeplab.layers.traced import TracedLayer
from keras_deeplab.validation import error, integers, one_of


def bin_range(index: int, size: Any, bins: int) -> tuple[Any, Any]:
    """Returns the first sample of a bin along an axis, and the one after its last."""
    return index * size // bins, ((index + 1) * size + bins - 1) // bins


@keras.saving.register_keras_serializable(package="keras_deeplab")
class SpatialPyramidPooling2D(TracedLayer):
    """Pools a map of any size into a vector of one fixed length, for `Dense` layers to follow.

    Level `n` lays a grid of `n x n` bins over the map and pools each bin. Bin `i` covers the rows
    `floor(i * height / n)` to `ceil((i + 1) * height / n)`: where the map is smaller than the grid,
    bins share pixels.

    Args:
        levels: Bins per side of each level, such as `(4, 2, 1)` or `(6, 3, 2, 1)`.
        mode: `"max"` (as in the paper) or `"average"`.

    Input shape:
        `(batch, height, width, channels)`, height and width from 1.

    Output shape:
        `(batch, channels * sum(n * n for n in levels))`: level after level, in each row by row, in
        each bin channel by channel.

    Raises:
        ValueError: If `levels` is not a list of positive integers, or `mode` is neither of the two.

    Example:

    >>> inputs = keras.Input((None, None, 3))
    >>> x = keras.layers.Conv2D(8, 3, activation="relu")(inputs)
    >>> keras_deeplab.layers.SpatialPyramidPooling2D((4, 2, 1))(x).shape
    (None, 168)

    Reference:
        [He et al., 2014, SPP-net](https://arxiv.org/abs/1406.4729), section 2.2 (bins) and 3.1
        (levels).
    """

    def __init__(
        self, levels: tuple[int, ...] = (4, 2, 1), mode: str = "max", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.levels = integers("levels", levels)
        if not levels:
            raise error("levels", "a list of positive integers with at least one", levels)
        self.mode = one_of("mode", mode, ("max", "average"))
        self.supports_jit = False

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return tf.concat([self._level(x, bins) for bins in self.levels], axis=1)

    def _level(self, x: tf.Tensor, bins: int) -> tf.Tensor:
        # First along the height, then along the width: a maximum of maxima is the maximum, and an
        # average of averages is the average, because all rows of a bin are equally wide.
        x = tf.stack([self._bin(x, 1, index, bins) for index in range(bins)], axis=1)
        x = tf.stack([self._bin(x, 2, index, bins) for index in range(bins)], axis=2)
        return tf.reshape(x, [tf.shape(x)[0], bins * bins * x.shape[-1]])

    def _bin(self, x: tf.Tensor, axis: int, index: int, bins: int) -> tf.Tensor:
        size = tf.shape(x)[axis]
        begin, end = bin_range(index, size, bins)
        part = x[:, begin:end] if axis == 1 else x[:, :, begin:end]
        # TensorFlow's own mean adds up in half precision, where a few hundred pixels overflow.
        reduce = tf.reduce_max if self.mode == "max" else keras.ops.mean
        return reduce(part, axis=axis)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "levels": self.levels, "mode": self.mode}
