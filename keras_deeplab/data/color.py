from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real

import tensorflow as tf

GREY_WEIGHTS = (0.299, 0.587, 0.114)
PLAIN = ("brightness", "contrast", "saturation")
CHANGES = (*PLAIN, "gamma", "white_balance")

ColorJitter = float | Sequence[float] | Mapping[str, float] | None


def jitter_strengths(color_jitter: ColorJitter) -> dict[str, float] | None:
    """Returns the strength of every one of `CHANGES`, or None where no colour is to change.

    Args:
        color_jitter: One number in 0..1 for brightness, contrast and saturation, three of them, a
            mapping with some of the names in `CHANGES`, or None.

    Raises:
        ValueError: It is none of these.
    """
    if color_jitter is None:
        return None
    given = _by_name(color_jitter)
    # True would pass for the number 1, which is the most that can be asked for.
    allowed = all(
        name in CHANGES
        and isinstance(strength, Real)
        and not isinstance(strength, bool)
        and 0 <= strength <= 1
        for name, strength in given.items()
    )
    if not allowed:
        raise ValueError(
            f"`color_jitter` must be a number in 0..1, three of them ({', '.join(PLAIN)}), a "
            f"mapping with names of {CHANGES} and numbers in 0..1, or None. "
            f"Received: color_jitter={color_jitter!r}"
        )
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
    """Changes the light and the colours of an image at random.

    White balance multiplies each channel by a factor of its own in 1 - strength .. 1 + strength;
    brightness, contrast and saturation have one such factor each. Gamma is an exponent on pixels in
    0..1, between 1 / (1 + strength) and 1 + strength, darker as often as lighter: unlike
    brightness it lifts shadows (or drowns them) and leaves black and white where they are.

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
    # In the order of a camera: the light's colour, exposure, tone curve, then what is done after.
    # What is not asked for is left out where it costs: channel by channel is slow.
    if strengths["white_balance"]:
        brightness *= 1.0 + strengths["white_balance"] * draws[4:]
    image = tf.clip_by_value(image * brightness, 0.0, 255.0)
    if strengths["gamma"]:
        exponent = (1.0 + strengths["gamma"]) ** draws[3]
        # A power, in an eighth of its time; black stays black: exp(-inf) is 0.
        image = 255.0 * tf.exp(exponent * tf.math.log(image / 255.0))
    grey = tf.reduce_sum(image * tf.constant(GREY_WEIGHTS), axis=-1, keepdims=True)
    mean = tf.reduce_mean(grey)
    image = tf.clip_by_value(mean + (image - mean) * contrast, 0.0, 255.0)
    grey = tf.clip_by_value(mean + (grey - mean) * contrast, 0.0, 255.0)
    return tf.clip_by_value(grey + (image - grey) * saturation, 0.0, 255.0)
