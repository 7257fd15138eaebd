"""Scaling of pixels, in the words of keras.applications."""

from __future__ import annotations

from typing import Any

from keras import layers as kl

# Mean and standard deviation of ImageNet's pixels, RGB.
_MEAN = (123.675, 116.28, 103.53)
_DEVIATION = (58.395, 57.12, 57.375)
# The mean that VGG was trained with, RGB; the unit is kept.
_VGG_MEAN = (123.68, 116.779, 103.939)
PREPROCESSING = ("tf", "torch", "mean")


def preprocess(x: Any, mode: str, name: str = "preprocess") -> Any:
    """Scales pixels of 0..255 in one layer.

    Args:
        x: Symbolic pixels `(batch, height, width, channels)`.
        mode: `"tf"` for [-1, 1]; `"torch"` for ImageNet's mean 0 and standard deviation 1; `"mean"`
            for mean 0 alone, as VGG has it, the channels staying RGB. The last two need three
            channels (others are scaled to [-1, 1]).
        name: Of the layer.

    Returns:
        The scaled pixels.

    Raises:
        ValueError: If the mode is not known.
    """
    if mode not in PREPROCESSING:
        raise ValueError(f"`preprocessing` must be one of {PREPROCESSING}, received {mode!r}.")
    if mode == "tf" or x.shape[-1] != 3:
        return kl.Rescaling(1 / 127.5, -1.0, name=name)(x)
    if mode == "mean":
        return kl.Rescaling(1.0, [-mean for mean in _VGG_MEAN], name=name)(x)
    scale = [1 / deviation for deviation in _DEVIATION]
    offset = [-mean / deviation for mean, deviation in zip(_MEAN, _DEVIATION, strict=True)]
    return kl.Rescaling(scale, offset, name=name)(x)
