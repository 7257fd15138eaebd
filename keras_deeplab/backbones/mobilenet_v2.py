"""MobileNetV2."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers as kl

from keras_deeplab.backbones.blocks import conv_norm, image_input, norm, pad_for_stride

EPSILON = 1e-3
# Expansion, channels, repeats, stride of the first.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenet_v2(input_shape: tuple[int | None, int | None, int] = (None, None, 3)) -> keras.Model:
    """Builds MobileNetV2 up to its last bottleneck, at its own output stride of 32.

    The 1280-channel convolution of the classifier is left out, as in DeepLab.

    Args:
        input_shape: (height, width, channels) without the batch, None for any size.

    Returns:
        A functional model from scaled pixels `(batch, height, width, channels)` to features
        `(batch, ceil(height / 32), ceil(width / 32), 320)`.

    Reference:
        [Sandler et al., 2018, MobileNetV2](https://arxiv.org/abs/1801.04381), table 2.
    """
    inputs = image_input(input_shape)
    x = conv_norm(inputs, 32, 3, "stem", stride=2, epsilon=EPSILON, activation="relu6")
    block = 0
    for expansion, channels, repeats, first_stride in STAGES:
        for repeat in range(repeats):
            stride = first_stride if repeat == 0 else 1
            x = _inverted_residual(x, expansion, channels, stride, f"block{block}")
            block += 1
    return keras.Model(inputs, x, name="mobilenet_v2")


def _inverted_residual(x: Any, expansion: int, channels: int, stride: int, name: str) -> Any:
    shortcut, depth = x, x.shape[-1]
    if expansion > 1:
        x = conv_norm(
            x, expansion * depth, 1, f"{name}_expand", epsilon=EPSILON, activation="relu6"
        )
    x, padding = pad_for_stride(x, 3, stride, f"{name}_depthwise_pad")
    x = kl.DepthwiseConv2D(
        3,
        strides=stride,
        padding=padding,
        use_bias=False,
        depthwise_initializer="he_normal",
        name=f"{name}_depthwise_conv",
    )(x)
    x = norm(x, f"{name}_depthwise_norm", EPSILON)
    x = kl.Activation("relu6", name=f"{name}_depthwise_act")(x)
    x = conv_norm(x, channels, 1, f"{name}_project", epsilon=EPSILON, activation=None)
    if stride == 1 and depth == channels:
        x = kl.Add(name=f"{name}_add")([shortcut, x])
    return x
