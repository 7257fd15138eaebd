"""The contracting path and the up-convolution of U-Net (Ronneberger et al., 2015, figure 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
from keras import layers as kl

from keras_deeplab.layers import AtrousConv2D, CropLike
from keras_deeplab.validation import error


def contracting_path(arguments: Mapping[str, Any]) -> keras.Model:
    """Builds the network of 2015 down to its coarsest features, by the arguments of `UNet`."""
    depth, skips = arguments["depth"], arguments["skip_layers"]
    if skips is not None and len(skips) != depth:  # each up-convolution enlarges by two
        raise error("skip_layers", f"{depth} layers, one at each stride finer than the last", skips)
    x = inputs = keras.Input((None, None, arguments["input_shape"][2]), name="pixels")
    for level in range(depth + 1):
        if level > 0:
            x = kl.MaxPooling2D(2, padding="same", name=f"level{level}_pool")(x)
        x = two_convolutions(x, arguments["filters"] * 2**level, f"level{level}", arguments)
        if level >= depth - 1:
            x = kl.Dropout(arguments["dropout"], name=f"level{level}_dropout")(x)
    return keras.Model(inputs, x, name="contracting_path")


def two_convolutions(x: Any, filters: int, level: str, arguments: Mapping[str, Any]) -> Any:
    """Applies the two 3x3 convolutions of a level, with norm and activation."""
    options = {name: arguments[name] for name in ("batch_norm", "activation")}
    for index in (1, 2):
        x = AtrousConv2D(filters, 3, name=f"{level}_conv{index}", **options)(x)
    return x


def up_conv(x: Any, skip: Any, filters: int, level: str) -> Any:
    """Applies the 2x2 up-convolution of a level, to the size of the skip."""
    options = {"kernel_initializer": "he_uniform", "name": f"{level}_up"}
    x = kl.Conv2DTranspose(filters, 2, 2, **options)(x)
    return CropLike(name=f"{level}_crop")(x, skip)  # odd maps were pooled rounding up
