"""Scaling of pixels, by the names of keras.applications."""

from __future__ import annotations

from typing import Any

from keras import layers as kl

from keras_deeplab.layers import ReverseChannels
from keras_deeplab.validation import one_of

# Mean and standard deviation of ImageNet's pixels, RGB.
_MEAN = (123.675, 116.28, 103.53)
_DEVIATION = (58.395, 57.12, 57.375)
# Modes of a mean alone: the mean, RGB, and whether the channels are reversed to BGR first. The
# first mean is VGG's, which keras.applications also uses for its ResNets; with the second DeepLab
# V1 and V2 were trained in Caffe.
_VGG_MEAN = (123.68, 116.779, 103.939)
_MEANS = {
    "mean": (_VGG_MEAN, False),
    "caffe": (_VGG_MEAN, True),
    "caffe_deeplab": ((122.675, 116.669, 104.008), True),
}
PREPROCESSING = ("tf", "torch", *_MEANS)


def preprocess(x: Any, mode: str, name: str = "preprocess") -> Any:
    """Scales symbolic pixels of 0..255.

    Args:
        x: Symbolic pixels `(batch, height, width, channels)`.
        mode: `"tf"` for [-1, 1]; `"torch"` for ImageNet's mean 0 and standard deviation 1; `"mean"`
            for mean 0 alone, as VGG has it, the channels staying RGB; `"caffe"` for the same in
            BGR, as keras.applications' ResNets and VGGs have it; `"caffe_deeplab"` for BGR with the
            mean of DeepLab V1 and V2. The first three of more channels are scaled as RGB, and all
            other channels by the mean of the three values.
        name: Of the layer.
    """
    one_of("preprocessing", mode, PREPROCESSING)
    if mode == "tf":
        return kl.Rescaling(1 / 127.5, -1.0, name=name)(x)
    channels = x.shape[-1]
    if mode in _MEANS:
        means, reverse = _MEANS[mode]
        if reverse and channels >= len(means):
            x, means = ReverseChannels(name=f"{name}_channels")(x), means[::-1]
        return kl.Rescaling(1.0, _for_channels([-mean for mean in means], channels), name=name)(x)
    scale = [1 / deviation for deviation in _DEVIATION]
    offset = [-mean / deviation for mean, deviation in zip(_MEAN, _DEVIATION, strict=True)]
    scale, offset = _for_channels(scale, channels), _for_channels(offset, channels)
    return kl.Rescaling(scale, offset, name=name)(x)


def _for_channels(values: list[float], channels: int) -> list[float]:
    """Values for three colours, those of further or fewer channels being their mean."""
    mean = sum(values) / len(values)
    further = [mean] * (channels - len(values))
    return [*values, *further] if channels >= len(values) else [mean] * channels
