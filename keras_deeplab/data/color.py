from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real

import tensorflow as tf

from keras_deeplab import validation

GREY_WEIGHTS = (0.299, 0.587, 0.114)
PLAIN = ("brightness", "contrast", "saturation")
CHANGES = (*PLAIN, "gamma", "white_balance")

ColorJitter = float | Sequence[float] | Mapping[str, float] | None


def jitter_strengths(color_jitter: ColorJitter) -> dict[str, float] | None:
    """Returns the strength of each of `CHANGES`, or None for no change of colour."""
    if color_jitter is None:
        return None
    given = color_jitter
    if isinstance(color_jitter, Real):
        given = dict.fromkeys(PLAIN, color_jitter)
    elif isinstance(color_jitter, list | tuple) and len(color_jitter) == len(PLAIN):
        given = dict(zip(PLAIN, color_jitter, strict=True))
    if not isinstance(given, Mapping) or not all(
        name in CHANGES and validation.is_number(strength) and 0 <= strength <= 1
        for name, strength in given.items()
    ):
        rule = (
            f"a number in 0..1, three of them ({', '.join(PLAIN)}), a mapping with names of "
            f"{CHANGES} and numbers in 0..1, or None"
        )
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
