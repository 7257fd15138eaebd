"""Random scales, crops, mirroring and rotation of an image with its label map."""

from __future__ import annotations

import tensorflow as tf

from keras_deeplab.data.source import IGNORE_LABEL

# Grey of the middle: 0 after scaling to [-1, 1], near 0 after subtracting ImageNet's mean.
MEAN_COLOR = 127.5

Pair = tuple[tf.Tensor, tf.Tensor]
Size = tuple[int, int] | tf.Tensor


def random_scaled_crop(
    image: tf.Tensor,
    label: tf.Tensor,
    seed: tf.Tensor,
    crop_size: Size,
    scales: tuple[float, float],
    class_focus: float,
    scale_step: float | None,
    wanted: tf.Tensor | None = None,
) -> Pair:
    """Scales by a random factor and crops a random window of at most `crop_size`.

    A share `class_focus` of the windows is around a pixel of a class of the label map `wanted`, by
    default of any. The window is cropped before it is scaled, which gives the same pixels in a
    fraction of the time.
    """
    seeds = tf.random.split(seed, 3)
    factor = _random_scale(scales, scale_step, seeds[0])
    size = tf.shape(label)
    crop = tf.convert_to_tensor(crop_size, tf.int32)
    window = _rounded(tf.cast(crop, tf.float32) / factor)
    scaled = tf.minimum(crop, _rounded(tf.cast(size, tf.float32) * factor))
    target = tf.where(window < size, crop, scaled)
    window = tf.minimum(window, size)
    top = random_below(size[0] - window[0] + 1, seeds[1])
    left = random_below(size[1] - window[1] + 1, seeds[2])
    if class_focus:
        wanted = label if wanted is None else wanted
        # A seed of its own, so that the other windows do not depend on `class_focus`.
        seeds = tf.random.split(tf.random.fold_in(seed, tf.ones((), seed.dtype)))
        focused = tf.random.stateless_uniform((), seeds[0]) < class_focus
        focused &= tf.reduce_any(wanted != IGNORE_LABEL)
        top, left = tf.cond(
            focused, lambda: _around_a_class(wanted, window, seeds[1]), lambda: (top, left)
        )
    image = image[top : top + window[0], left : left + window[1]]
    label = label[top : top + window[0], left : left + window[1]]
    # Resizing to the same size costs time too.
    same = tf.reduce_all(target == window)
    image = tf.cond(
        same,
        lambda: tf.cast(image, tf.float32),
        lambda: tf.image.resize(image, target, antialias=True),
    )
    return image, tf.image.resize(label[..., None], target, method="nearest")[..., 0]


def _random_scale(scales: tuple[float, float], step: float | None, seed: tf.Tensor) -> tf.Tensor:
    low, high = scales
    if step is None:
        return tf.random.stateless_uniform((), seed, low, high)
    steps = int((high - low) / step + 1e-6)  # 0.1 goes three times into 0.3
    drawn = tf.random.stateless_uniform((), seed, 0, steps + 1, tf.int32)
    return low + step * tf.cast(drawn, tf.float32)


def _around_a_class(label: tf.Tensor, window: tf.Tensor, seed: tf.Tensor) -> Pair:
    """The upper left corner of a window around a random pixel of a random class, drawn first."""
    seeds = tf.random.split(seed)
    values = tf.reshape(tf.cast(label, tf.int32), [-1])
    classes = tf.where(tf.math.bincount(values, minlength=256)[:IGNORE_LABEL] > 0)[:, 0]
    drawn = classes[random_below(tf.size(classes), seeds[0])]
    # Its row first: the places of all pixels would take 16 bytes each.
    is_drawn = label == tf.cast(drawn, label.dtype)
    of_rows = tf.math.count_nonzero(is_drawn, 1, dtype=tf.int32)
    ends = tf.cumsum(of_rows)
    number = random_below(ends[-1], seeds[1])
    row = tf.searchsorted(ends, [number], side="right")[0]
    columns = tf.cast(tf.where(is_drawn[row])[:, 0], tf.int32)
    pixel = tf.stack([row, columns[number - ends[row] + of_rows[row]]])
    corner = tf.clip_by_value(pixel - window // 2, 0, tf.shape(label) - window)
    return corner[0], corner[1]


def random_pad(image: tf.Tensor, label: tf.Tensor, seed: tf.Tensor, crop_size: Size) -> Pair:
    """Pads to `crop_size` at a random place: the image with grey 127.5, the label with 255."""
    seeds = tf.random.split(seed, 2)
    missing = tf.convert_to_tensor(crop_size, tf.int32) - tf.shape(label)
    top = random_below(missing[0] + 1, seeds[0])
    left = random_below(missing[1] + 1, seeds[1])
    paddings = [[top, missing[0] - top], [left, missing[1] - left]]
    image = tf.pad(image, [*paddings, [0, 0]], constant_values=MEAN_COLOR)
    return image, tf.pad(label, paddings, constant_values=IGNORE_LABEL)


def random_flip(image: tf.Tensor, label: tf.Tensor, seed: tf.Tensor, axis: int) -> Pair:
    """Mirrors half of the images: upside down along axis 0, left to right along axis 1."""
    return tf.cond(
        tf.random.stateless_uniform((), seed) < 0.5,
        lambda: (tf.reverse(image, (axis,)), tf.reverse(label, (axis,))),
        lambda: (image, label),
    )


def rotated(image: tf.Tensor, label: tf.Tensor, angle: tf.Tensor, crop_size: Size) -> Pair:
    """Turns counterclockwise by an angle in radians; returns the middle of `crop_size`.

    Outside the image the pixels are grey 127.5 and the label is 255.
    """
    cos, sin = tf.cos(angle), tf.sin(angle)
    # The op takes places in the output to places in the input: x' = cos x - sin y + right, y' = ...
    middle = (tf.cast(crop_size, tf.float32) - 1) / 2
    y, x = tf.unstack((tf.cast(tf.shape(label), tf.float32) - 1) / 2)
    right = x - cos * middle[1] + sin * middle[0]
    down = y - sin * middle[1] - cos * middle[0]
    matrix = tf.stack([cos, -sin, right, sin, cos, down, 0.0, 0.0])[None]

    def turned(pixels: tf.Tensor, interpolation: str, fill: float) -> tf.Tensor:
        return tf.raw_ops.ImageProjectiveTransformV3(
            images=pixels[None],
            transforms=matrix,
            output_shape=crop_size,
            fill_value=fill,
            interpolation=interpolation,
            fill_mode="CONSTANT",
        )[0]

    image = turned(image, "BILINEAR", MEAN_COLOR)
    return image, turned(label[..., None], "NEAREST", IGNORE_LABEL)[..., 0]


def enclosing(crop_size: Size, angle: tf.Tensor) -> tf.Tensor:
    """The size of the upright window that contains a crop turned by an angle."""
    cos, sin = tf.abs(tf.cos(angle)), tf.abs(tf.sin(angle))
    height, width = tf.unstack(tf.cast(crop_size, tf.float32))
    sides = tf.stack([height * cos + width * sin, height * sin + width * cos])
    return tf.cast(tf.math.ceil(sides), tf.int32)


def _rounded(size: tf.Tensor) -> tf.Tensor:
    return tf.maximum(1, tf.cast(tf.round(size), tf.int32))


def random_below(limit: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """A random integer in 0..limit-1."""
    return tf.random.stateless_uniform((), seed, 0, limit, tf.int32)
