"""MobileNetV2."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers as kl

from keras_deeplab.backbones.blocks import (
    checked_padding,
    conv_norm,
    image_input,
    multiple_of,
    norm,
    pad_for_stride,
    stem_padding,
)

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


# The input of the third block's 1x1 projection: 144 channels at stride 4.
LOW_LEVEL = "block2_depthwise_act"


def mobilenet_v2(
    input_shape: tuple[int | None, int | None, int] = (None, None, 3),
    *,
    depth_multiplier: float = 1.0,
    divisible_by: int | None = None,
    classifier_conv: bool = False,
    padding: str = "symmetric",
    epsilon: float = 1e-3,
) -> keras.Model:
    """Builds MobileNetV2 up to its last bottleneck, at its own output stride of 32.

    The 1280-channel convolution of the classifier is left out, as in DeepLab.

    Args:
        input_shape: (height, width, channels) without the batch, None for any size.
        depth_multiplier: Factor of all channels.
        divisible_by: What the channels of the blocks' outputs are multiples of; `None` for
            DeepLab's rule, 8 at a depth multiplier of 1 and 1 (whole numbers) at any other. The
            ImageNet classifiers have 8 throughout. What lies inside the blocks is always a multiple
            of 8.
        classifier_conv: Whether the classifier's last 1x1 convolution, of 1280 channels (times the
            depth multiplier above 1), follows.
        padding: In front of strides: "symmetric", which samples even and odd sizes alike;
            TensorFlow's "same", as the authors' networks have it; "end", as keras.applications:
            none in front and one at the end, at any size, and "same" at the first convolution.
        epsilon: Of the batch norms.

    Returns:
        A functional model from scaled pixels `(batch, height, width, channels)` to features
        `(batch, ceil(height / 32), ceil(width / 32), 320 * depth_multiplier)`; rounded down with
        padding "end".

    Raises:
        ValueError: If an argument is not one of those named.

    Reference:
        [Sandler et al., 2018, MobileNetV2](https://arxiv.org/abs/1801.04381), table 2.
    """
    if not isinstance(depth_multiplier, int | float) or not 0 < depth_multiplier < float("inf"):
        raise ValueError(
            f"`depth_multiplier` must be a positive number, received {depth_multiplier!r}."
        )
    if divisible_by is None:
        divisible_by = 8 if depth_multiplier == 1 else 1
    if not isinstance(divisible_by, int) or divisible_by < 1:
        raise ValueError(f"`divisible_by` must be a positive integer, received {divisible_by!r}.")
    shared = {"padding": checked_padding(padding), "epsilon": epsilon}
    inputs = image_input(input_shape)
    width = multiple_of(divisible_by, 32 * depth_multiplier)
    first = {**shared, "padding": stem_padding(padding)}
    x = conv_norm(inputs, width, 3, "stem", stride=2, activation="relu6", **first)
    block = 0
    for expansion, channels, repeats, first_stride in STAGES:
        for repeat in range(repeats):
            stride = first_stride if repeat == 0 else 1
            width = multiple_of(divisible_by, channels * depth_multiplier)
            x = _inverted_residual(x, expansion, width, stride, f"block{block}", **shared)
            block += 1
    if classifier_conv:
        width = multiple_of(divisible_by, 1280 * max(1, depth_multiplier))
        x = conv_norm(x, width, 1, "classifier", epsilon=epsilon, activation="relu6")
    return keras.Model(inputs, x, name="mobilenet_v2")


def _inverted_residual(
    x: Any, expansion: int, channels: int, stride: int, name: str, padding: str, epsilon: float
) -> Any:
    shortcut, depth = x, x.shape[-1]
    if expansion > 1:
        x = conv_norm(
            x,
            multiple_of(8, expansion * depth),
            1,
            f"{name}_expand",
            epsilon=epsilon,
            activation="relu6",
        )
    x, how = pad_for_stride(x, 3, stride, f"{name}_depthwise_pad", padding)
    x = kl.DepthwiseConv2D(
        3,
        strides=stride,
        padding=how,
        use_bias=False,
        depthwise_initializer="he_normal",
        name=f"{name}_depthwise_conv",
    )(x)
    x = norm(x, f"{name}_depthwise_norm", epsilon)
    x = kl.Activation("relu6", name=f"{name}_depthwise_act")(x)
    x = conv_norm(x, channels, 1, f"{name}_project", epsilon=epsilon, activation=None)
    if stride == 1 and depth == channels:
        x = kl.Add(name=f"{name}_add")([shortcut, x])
    return x
