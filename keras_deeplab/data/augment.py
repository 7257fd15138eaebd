"""Random scales, crops, mirroring and colours of an image with its label map."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real

import tensorflow as tf

from keras_deeplab import validation
from keras_deeplab.data.source import IGNORE_LABEL

# Grey of the middle: 0 after scaling to [-1, 1], near 0 after subtracting ImageNet's mean.
MEAN_COLOR = 127.5
GREY_WEIGHTS = (0.299, 0.587, 0.114)
PLAIN = ("brightness", "contrast", "saturation")
CHANGES = (*PLAIN, "gamma", "white_balance")

ColorJitter = float | Mapping[str, float] | None
Pair = tuple[tf.Tensor, tf.Tensor]


def random_scaled_crop(
    image: tf.Tensor,
    label: tf.Tensor,
    seed: tf.Tensor,
    crop_size: tuple[int, int],
    scales: tuple[float, float],
    class_focus: float,
    scale_step: float | None,
) -> Pair:
    """Scales by a random factor and crops a random window of at most `crop_size`.

    The window is cropped before it is scaled, which gives the same pixels in a fraction of the
    time.
    """
    seeds = tf.random.split(seed, 3)
    factor = _random_scale(scales, scale_step, seeds[0])
    size = tf.shape(label)
    crop = tf.constant(crop_size, tf.int32)
    window = _rounded(tf.cast(crop, tf.float32) / factor)
    scaled = tf.minimum(crop, _rounded(tf.cast(size, tf.float32) * factor))
    target = tf.where(window < size, crop, scaled)
    window = tf.minimum(window, size)
    top = _random_below(size[0] - window[0] + 1, seeds[1])
    left = _random_below(size[1] - window[1] + 1, seeds[2])
    if class_focus:
        # A seed of its own, so that the other windows do not depend on `class_focus`.
        seeds = tf.random.split(tf.random.fold_in(seed, tf.ones((), seed.dtype)))
        focused = tf.random.stateless_uniform((), seeds[0]) < class_focus
        focused &= tf.reduce_any(label != IGNORE_LABEL)
        top, left = tf.cond(
            focused, lambda: _around_a_class(label, window, seeds[1]), lambda: (top, left)
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
    drawn = classes[_random_below(tf.size(classes), seeds[0])]
    pixels = tf.cast(tf.where(label == tf.cast(drawn, label.dtype)), tf.int32)
    pixel = pixels[_random_below(tf.shape(pixels)[0], seeds[1])]
    corner = tf.clip_by_value(pixel - window // 2, 0, tf.shape(label) - window)
    return corner[0], corner[1]


def random_pad(
    image: tf.Tensor, label: tf.Tensor, seed: tf.Tensor, crop_size: tuple[int, int]
) -> Pair:
    """Pads to `crop_size` at a random place: the image with grey 127.5, the label with 255."""
    seeds = tf.random.split(seed, 2)
    missing = tf.constant(crop_size, tf.int32) - tf.shape(label)
    top = _random_below(missing[0] + 1, seeds[0])
    left = _random_below(missing[1] + 1, seeds[1])
    paddings = [[top, missing[0] - top], [left, missing[1] - left]]
    image = tf.pad(image, [*paddings, [0, 0]], constant_values=MEAN_COLOR)
    label = tf.pad(label, paddings, constant_values=IGNORE_LABEL)
    return tf.ensure_shape(image, (*crop_size, 3)), tf.ensure_shape(label, crop_size)


def jitter_strengths(color_jitter: ColorJitter) -> dict[str, float] | None:
    """Returns the strength of each of `CHANGES`, or None for no change of colour."""
    if color_jitter is None:
        return None
    is_number = isinstance(color_jitter, Real)
    given = dict.fromkeys(PLAIN, color_jitter) if is_number else color_jitter
    if not isinstance(given, Mapping) or not all(
        name in CHANGES and validation.is_number(strength) and 0 <= strength <= 1
        for name, strength in given.items()
    ):
        rule = f"a number in 0..1, a mapping from names of {CHANGES} to such numbers, or None"
        raise validation.error("color_jitter", rule, color_jitter)
    return {name: float(given.get(name, 0.0)) for name in CHANGES}


def random_color(image: tf.Tensor, seed: tf.Tensor, strengths: Mapping[str, float]) -> tf.Tensor:
    """Changes brightness and colours of an image at random; float32 pixels in 0..255."""
    draws = tf.random.stateless_uniform((len(CHANGES) + 2,), seed, -1.0, 1.0)
    brightness, contrast, saturation = (
        1.0 + strengths[name] * draws[index] for index, name in enumerate(PLAIN)
    )
    # In the order of a camera: colour of the light, exposure, tone curve, processing. Expensive
    # steps without strength are skipped.
    if strengths["white_balance"]:
        brightness *= 1.0 + strengths["white_balance"] * draws[4:]
    image = tf.clip_by_value(image * brightness, 0.0, 255.0)
    if strengths["gamma"]:  # darker as often as lighter; keeps black and white
        exponent = (1.0 + strengths["gamma"]) ** draws[3]
        # Eight times as fast as a power; black stays black, as exp(-inf) is 0.
        image = 255.0 * tf.exp(exponent * tf.math.log(image / 255.0))
    grey = tf.reduce_sum(image * tf.constant(GREY_WEIGHTS), axis=-1, keepdims=True)
    mean = tf.reduce_mean(grey)
    image = tf.clip_by_value(mean + (image - mean) * contrast, 0.0, 255.0)
    grey = tf.clip_by_value(mean + (grey - mean) * contrast, 0.0, 255.0)
    return tf.clip_by_value(grey + (image - grey) * saturation, 0.0, 255.0)


def augment(
    image: tf.Tensor,
    label: tf.Tensor,
    seed: tf.Tensor,
    *,
    crop_size: tuple[int, int],
    scales: tuple[float, float],
    scale_step: float | None,
    flip: bool,
    strengths: Mapping[str, float] | None,
    class_focus: float,
) -> Pair:
    """Scales, crops, flips, jitters and pads one image with its label, all by one seed int `(2,)`.

    Returns the image float32 `(*crop_size, 3)` in 0..255 and the label uint8 `crop_size`.
    """
    seeds = tf.random.split(seed, 4)
    image, label = random_scaled_crop(
        image, label, seeds[0], crop_size, scales, class_focus, scale_step
    )
    if flip:
        image, label = tf.cond(
            tf.random.stateless_uniform((), seeds[1]) < 0.5,
            lambda: (image[:, ::-1], label[:, ::-1]),
            lambda: (image, label),
        )
    if strengths is not None:
        image = random_color(image, seeds[2], strengths)
    return random_pad(image, label, seeds[3], crop_size)


def _rounded(size: tf.Tensor) -> tf.Tensor:
    return tf.maximum(1, tf.cast(tf.round(size), tf.int32))


def _random_below(limit: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    return tf.random.stateless_uniform((), seed, 0, limit, tf.int32)
