"""Random changes of the colours, the sharpness and the compression of an image."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real

import tensorflow as tf

from keras_deeplab import validation

GREY_WEIGHTS = (0.299, 0.587, 0.114)
PLAIN = ("brightness", "contrast", "saturation")
CHANGES = (*PLAIN, "gamma", "white_balance")

ColorJitter = float | Mapping[str, float] | None


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
    """Changes brightness and colours of an image at random; float32 pixels in 0..255.

    The grey of an image that is not RGB is the mean of its channels.
    """
    channels = image.shape[-1] or 3
    weights = GREY_WEIGHTS if channels == 3 else [1 / channels] * channels
    plain = len(CHANGES) - 1  # the draws after these are white balance's, one for each channel
    draws = tf.random.stateless_uniform((plain + channels,), seed, -1.0, 1.0)
    brightness, contrast, saturation = (
        1.0 + strengths[name] * draws[index] for index, name in enumerate(PLAIN)
    )
    # In the order of a camera: colour of the light, exposure, tone curve, processing. Expensive
    # steps without strength are skipped.
    if strengths["white_balance"]:
        brightness *= 1.0 + strengths["white_balance"] * draws[plain:]
    image = tf.clip_by_value(image * brightness, 0.0, 255.0)
    if strengths["gamma"]:  # darker as often as lighter; keeps black and white
        exponent = (1.0 + strengths["gamma"]) ** draws[3]
        # Eight times as fast as a power; black stays black, as exp(-inf) is 0.
        image = 255.0 * tf.exp(exponent * tf.math.log(image / 255.0))
    grey = tf.reduce_sum(image * tf.constant(weights), axis=-1, keepdims=True)
    mean = tf.reduce_mean(grey)
    image = tf.clip_by_value(mean + (image - mean) * contrast, 0.0, 255.0)
    grey = tf.clip_by_value(mean + (grey - mean) * contrast, 0.0, 255.0)
    return tf.clip_by_value(grey + (image - grey) * saturation, 0.0, 255.0)


def random_blur(image: tf.Tensor, seed: tf.Tensor, sigmas: tuple[float, float]) -> tf.Tensor:
    """Blurs with a Gaussian of a random standard deviation in pixels."""
    sigma = tf.random.stateless_uniform((), seed, *sigmas)
    height, width, channels = image.shape
    radius = tf.minimum(tf.cast(tf.math.ceil(3.0 * sigma), tf.int32), min(height, width))
    distance = tf.cast(tf.range(-radius, radius + 1), tf.float32)
    kernel = tf.exp(-0.5 * tf.math.divide_no_nan(distance, sigma) ** 2)
    kernel = tf.tile((kernel / tf.reduce_sum(kernel))[:, None, None, None], (1, 1, channels, 1))
    image = tf.pad(image, [[radius, radius], [radius, radius], [0, 0]], "SYMMETRIC")[None]
    for taps in (kernel, tf.transpose(kernel, (1, 0, 2, 3))):
        image = tf.nn.depthwise_conv2d(image, taps, (1, 1, 1, 1), "VALID")
    return tf.ensure_shape(image[0], (height, width, channels))


def random_jpeg(image: tf.Tensor, seed: tf.Tensor, qualities: tuple[float, float]) -> tf.Tensor:
    """Stores a grey or RGB image as JPEG of a random quality and reads it again."""
    low, high = map(int, qualities)
    quality = tf.random.stateless_uniform((), seed, low, high + 1, tf.int32)
    stored = tf.image.adjust_jpeg_quality(image / 255.0, quality, dct_method="INTEGER_ACCURATE")
    return 255.0 * stored
