"""Networks that turn pixels into features, each written as the classifier it is."""

from __future__ import annotations

from typing import Any

import keras

from keras_deeplab.backbones.mobilenet_v2 import mobilenet_v2
from keras_deeplab.backbones.preprocessing import PREPROCESSING, preprocess
from keras_deeplab.backbones.resnet import UNITS, resnet

__all__ = [
    "NAMES",
    "OWN_PREPROCESSING",
    "PREPROCESSING",
    "build",
    "mobilenet_v2",
    "preprocess",
    "resnet",
]

_RESNETS = {f"resnet{depth}": depth for depth in UNITS}
NAMES = (*_RESNETS, "mobilenet_v2")
# How the published weights of each network expect their pixels.
OWN_PREPROCESSING = {**dict.fromkeys(_RESNETS, "torch"), "mobilenet_v2": "tf"}


def build(
    name: str,
    input_shape: tuple[int | None, int | None, int],
    **resnet_options: Any,
) -> keras.Model:
    """Builds a backbone by name, at its own output stride.

    Args:
        name: One of `NAMES`.
        input_shape: (height, width, channels) without the batch.
        **resnet_options: `multi_grid` and `stride_on`, for ResNets only; None means the default.

    Returns:
        A functional model from scaled pixels to features.

    Raises:
        ValueError: If the name is not known, or a ResNet's option is given to another network.
    """
    if name not in NAMES:
        raise ValueError(
            f"`backbone` must be one of {NAMES} or a functional Keras model, received {name!r}."
        )
    options = {key: value for key, value in resnet_options.items() if value is not None}
    if name in _RESNETS:
        return resnet(_RESNETS[name], input_shape, **options)
    if options:
        raise ValueError(
            f"`{next(iter(options))}` is for ResNets; the backbone is {name!r}, received "
            f"{next(iter(options.values()))!r}."
        )
    return mobilenet_v2(input_shape)
