"""The ResNet that DeepLab's authors released: three convolutions as stem, strides at the end."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers as kl

from keras_deeplab.backbones.blocks import (
    PADDINGS,
    check_multi_grid,
    conv_norm,
    pad_for_stride,
)
from keras_deeplab.backbones.resnet import UNITS, residual_sum
from keras_deeplab.validation import one_of

DEPTHS = (50, 101)


def resnet_beta(
    depth: int,
    input_shape: tuple[int | None, int | None, int] = (None, None, 3),
    *,
    multi_grid: tuple[int, int, int] = (1, 1, 1),
    padding: str = "same",
    epsilon: float = 1e-5,
) -> keras.Model:
    """Builds the "beta" ResNet without its classifier, at its own output stride of 32.

    Three 3x3 convolutions take the place of the 7x7, and a stage's stride is on the 3x3 of its last
    unit instead of its first.

    Args:
        depth: 50 or 101.
        input_shape: (height, width, channels) without the batch, None for any size.
        multi_grid: Rates of the 3x3 convolutions in the last stage's three units, multiplied by
            what the output stride gives.
        padding: Of the stem's pooling: "same", as the authors have it, "symmetric", which samples
            even and odd sizes alike, or "end".
        epsilon: Of the batch norms.

    Returns:
        A functional model from scaled pixels `(batch, height, width, channels)` to features
        `(batch, ceil(height / 32), ceil(width / 32), 2048)`.

    Raises:
        ValueError: If an argument is not one of those named.

    Reference:
        [Chen et al., 2017, DeepLabV3](https://arxiv.org/abs/1706.05587), in the released code.
    """
    one_of("depth", depth, DEPTHS)
    check_multi_grid(multi_grid)
    one_of("padding", padding, PADDINGS)
    inputs = keras.Input(input_shape, name="pixels")
    x = conv_norm(inputs, 64, 3, "stem1", stride=2, epsilon=epsilon)
    x = conv_norm(x, 64, 3, "stem2", epsilon=epsilon)
    x = conv_norm(x, 128, 3, "stem3", epsilon=epsilon)
    x, how = pad_for_stride(x, 3, 2, "stem_pool_pad", padding)  # behind a ReLU
    x = kl.MaxPooling2D(3, 2, padding=how, name="stem_pool")(x)
    for index, units in enumerate(UNITS[depth]):
        for unit in range(units):
            x = _bottleneck(
                x,
                width=64 * 2**index,
                stride=2 if unit == units - 1 and index < 3 else 1,
                rate=multi_grid[unit] if index == 3 else 1,
                epsilon=epsilon,
                name=f"stage{index + 1}_unit{unit + 1}",
            )
    return keras.Model(inputs, x, name=f"resnet{depth}_beta")


def _bottleneck(x: Any, width: int, stride: int, rate: int, epsilon: float, name: str) -> Any:
    shortcut = x
    if x.shape[-1] != 4 * width:
        shortcut = conv_norm(x, 4 * width, 1, f"{name}_0", epsilon=epsilon, activation=None)
    if stride > 1:
        shortcut = kl.MaxPooling2D(1, stride, name=f"{name}_subsample")(shortcut)
    return residual_sum(x, shortcut, width, (1, stride), rate, epsilon, name)
