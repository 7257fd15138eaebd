"""Layers that give a map another size, whatever the size of the image.

All read sizes while the model runs. `compile` does not take XLA for models with them, whose
programs are bound to one size: it would compile again for every other.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import keras
import tensorflow as tf

from keras_deeplab.layers.traced import TracedLayer
from keras_deeplab.validation import pair, positive


@keras.saving.register_keras_serializable(package="keras_deeplab")
class ResizeLike(keras.layers.Layer):
    """Resizes a map bilinearly to the height and width of a reference map.

    Args:
        align_corners: False takes pixels as areas (half-pixel centres), as torchvision and OpenCV
            do; True lays the outer pixels' centres over each other, as in the authors' own DeepLabs
            (TF1 and Caffe).

    In a `tf.function` of your own with `jit_compile=True`, TensorFlow's resizing by XLA is wrong
    on CPUs at some sizes, such as from 17 to 65, unless `align_corners` is set.

    Input shape:
        Two tensors, `(batch, height, width, channels)` and the reference
        `(batch, reference_height, reference_width, any)`.

    Output shape:
        `(batch, reference_height, reference_width, channels)`, in the layer's compute dtype.

    Example:

    >>> coarse = keras.random.normal((1, 9, 9, 256))
    >>> fine = keras.random.normal((1, 33, 35, 48))
    >>> keras_deeplab.layers.ResizeLike()(coarse, fine).shape
    TensorShape([1, 33, 35, 256])
    """

    interpolation = "bilinear"  # of Keras' resizing layers, for `graph.geometry`

    def __init__(self, align_corners: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.align_corners = align_corners
        self.supports_jit = False

    def call(self, x: tf.Tensor, reference: tf.Tensor) -> tf.Tensor:
        size = tf.shape(reference)[1:3]
        if tuple(x.shape[1:3]) == (1, 1):
            resized = tf.broadcast_to(x, [tf.shape(x)[0], size[0], size[1], x.shape[3]])
        else:
            resized = bilinear(x, size, self.align_corners)
        resized = tf.cast(resized, self.compute_dtype)
        resized.set_shape((None, *reference.shape[1:3], None))
        return resized

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "align_corners": self.align_corners}


def bilinear(x: tf.Tensor, size: tf.Tensor | list, align_corners: bool) -> tf.Tensor:
    """Resizes a map to `(height, width)`."""
    if align_corners:
        return tf.raw_ops.ResizeBilinear(images=x, size=size, align_corners=True)
    return tf.image.resize(x, size)


@keras.saving.register_keras_serializable(package="keras_deeplab")
class ResizeBy(TracedLayer):
    """Resizes a map by a factor, bilinearly.

    By factors below 0.5, at which bilinear interpolation would leave out pixels, the map is resized
    to about `int(1 / scale)` times that size, and the result has the means of as many pixels.

    Args:
        scale: Factor of height and width, a positive number.
        align_corners: As in `ResizeLike`. A side n becomes `(n - 1) * scale + 1` then, rounded
            down, and `n * scale`, rounded (a half to the even integer), without it.

    Example:

    >>> keras_deeplab.layers.ResizeBy(0.5)(keras.ops.ones((1, 33, 64, 3))).shape
    TensorShape([1, 16, 32, 3])
    """

    def __init__(self, scale: float, align_corners: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.scale = positive("scale", scale)
        self.align_corners = align_corners
        self.supports_jit = False

    def call(self, x: tf.Tensor) -> tf.Tensor:
        sides = [x.shape[axis] or tf.shape(x)[axis] for axis in (1, 2)]
        size = [tf.maximum(1, self.scaled(side)) for side in sides]
        cell = int(1 / self.scale) if self.scale < 0.5 else 1
        if self.align_corners:  # windows around samples, of which the first and last are at corners
            fine, window = [(side - 1) * cell + 1 for side in size], cell // 2 * 2 + 1
        else:
            fine, window = [side * cell for side in size], cell
        # In float32: sums of windows in half precision are wrong by many grey levels, or overflow.
        x = bilinear(tf.cast(x, tf.float32), fine, self.align_corners)
        x = tf.nn.avg_pool2d(x, window, cell, "SAME") if cell > 1 else x
        return tf.cast(x, self.compute_dtype)

    def scaled(self, side: int | tf.Tensor) -> int | tf.Tensor:
        """The size of a side, by integers: float32 is not exact, other runtimes lack float64."""
        scale = Fraction(self.scale).limit_denominator(10_000)
        over, under = scale.numerator, scale.denominator
        if self.align_corners:
            return (side - 1) * over // under + 1
        odd = side * over // under % 2  # a half is rounded to the even integer
        return (2 * side * over + under - 1 + odd) // (2 * under)

    def get_config(self) -> dict[str, Any]:
        own = {"scale": self.scale, "align_corners": self.align_corners}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable(package="keras_deeplab")
class PadToMinimum(TracedLayer):
    """Extends a map at the bottom and the right to a minimum height and width.

    Models put it before backbones that need a minimum size. The last row and column are repeated,
    so that the padding looks like the image's border in any scaling of the pixels.
    """

    def __init__(self, minimum: tuple[int, int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.minimum = pair("minimum", minimum)
        self.supports_jit = False

    def call(self, x: tf.Tensor) -> tf.Tensor:
        for axis, least in zip((1, 2), self.minimum, strict=True):
            size = tf.shape(x)[axis]
            rows = tf.minimum(tf.range(tf.maximum(size, least)), size - 1)
            x = tf.gather(x, rows, axis=axis)
        return x

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "minimum": self.minimum}


@keras.saving.register_keras_serializable(package="keras_deeplab")
class CropLike(keras.layers.Layer):
    """Cuts a map at the bottom and the right to the size of another: undoes `PadToMinimum`."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_jit = False

    def call(self, x: tf.Tensor, reference: tf.Tensor) -> tf.Tensor:
        size = tf.shape(reference)
        cropped = x[:, : size[1], : size[2], :]
        cropped.set_shape((None, *reference.shape[1:3], None))
        return cropped
