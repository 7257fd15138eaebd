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
    """Returns the strength of each of `CHANGES`, or None for no change of colour.

    Args:
        color_jitter: One number in 0..1 for brightness, contrast and saturation, three of them, a
            mapping with some of the names in `CHANGES`, or None.

    Raises:
        ValueError: If it is none of these.
    """
    if color_jitter is None:
        return None
    given = _by_name(color_jitter)
    if not all(
        name in CHANGES and validation.is_number(strength) and 0 <= strength <= 1
        for name, strength in given.items()
    ):
        rule = (
            f"a number in 0..1, three of them ({', '.join(PLAIN)}), a mapping with names of "
            f"{CHANGES} and numbers in 0..1, or None"
        )
        raise validation.error("color_jitter", rule, color_jitter)
    return {name: float(given.get(name, 0.0)) for name in CHANGES}


def _by_name(color_jitter: float | Sequence[float] | Mapping[str, float]) -> Mapping:
    if isinstance(color_jitter, Mapping):
        return color_jitter
    strengths = (color_jitter,) * 3 if isinstance(color_jitter, Real) else color_jitter
    try:
        return dict(zip(PLAIN, strengths, strict=True))
    except (TypeError, ValueError):  # not a sequence, or not three
        return {"": strengths}


def random_color(image: tf.Tensor, seed: tf.Tensor, strengths: Mapping[str, float]) -> tf.Tensor:
    """Changes brightness and colours of an image at random.

    White balance multiplies each channel by a factor of its own in 1 - strength .. 1 + strength;
    brightness, contrast and saturation have one such factor each. Gamma is an exponent on pixels in
    0..1, between 1 / (1 + strength) and 1 + strength, darker as often as lighter: unlike
    brightness it changes the shadows and keeps black and white.

    Args:
        image: float32 `(height, width, 3)` in 0..255.
        seed: Integer tensor of shape `(2,)`.
        strengths: All of `CHANGES`, each in 0..1.

    Returns:
        float32 `(height, width, 3)` in 0..255.
    """
    draws = tf.random.stateless_uniform((len(CHANGES) + 2,), seed, -1.0, 1.0)
    brightness, contrast, saturation = (
        1.0 + strengths[name] * draws[index] for index, name in enumerate(PLAIN)
    )
    # In the order of a camera: colour of the light, exposure, tone curve, processing. Expensive
    # steps without strength are skipped.
    if strengths["white_balance"]:
        brightness *= 1.0 + strengths["white_balance"] * draws[4:]
    image = tf.clip_by_value(image * brightness, 0.0, 255.0)
    if strengths["gamma"]:
        exponent = (1.0 + strengths["gamma"]) ** draws[3]
        # Eight times as fast as a power; black stays black, as exp(-inf) is 0.
        image = 255.0 * tf.exp(exponent * tf.math.log(image / 255.0))
    grey = tf.reduce_sum(image * tf.constant(GREY_WEIGHTS), axis=-1, keepdims=True)
    mean = tf.reduce_mean(grey)
    image = tf.clip_by_value(mean + (image - mean) * contrast, 0.0, 255.0)
    grey = tf.clip_by_value(mean + (grey - mean) * contrast, 0.0, 255.0)
    return tf.clip_by_value(grey + (image - grey) * saturation, 0.0, 255.0)
