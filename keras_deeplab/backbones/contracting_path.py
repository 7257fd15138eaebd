"""The contracting path of U-Net (Ronneberger et al., 2015, figure 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
from keras import layers as kl

from keras_deeplab.layers import AtrousConv2D


def contracting_path(arguments: Mapping[str, Any]) -> keras.Model:
    """Builds the network of 2015 down to its coarsest features, by the arguments of `UNet`."""
    x = inputs = keras.Input((None, None, arguments["input_shape"][2]), name="pixels")
    for level in range(arguments["depth"] + 1):
        if level > 0:
            x = kl.MaxPooling2D(2, padding="same", name=f"level{level}_pool")(x)
        x = two_convolutions(x, arguments["filters"] * 2**level, f"level{level}", arguments)
        if level >= arguments["depth"] - 1:
            x = kl.Dropout(arguments["dropout"], name=f"level{level}_dropout")(x)
    return keras.Model(inputs, x, name="contracting_path")


def two_convolutions(x: Any, filters: int, level: str, arguments: Mapping[str, Any]) -> Any:
    """Applies the two 3x3 convolutions of a level, with norm and activation."""
    options = {name: arguments[name] for name in ("batch_norm", "activation")}
    for index in (1, 2):
        x = AtrousConv2D(filters, 3, name=f"{level}_conv{index}", **options)(x)
    return x
