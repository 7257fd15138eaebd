"""MobileNetV3, large and small."""

from __future__ import annotations

from typing import Any, NamedTuple

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


class _Block(NamedTuple):
    kernel: int
    expanded: int
    channels: int
    squeeze: bool
    activation: str
    stride: int


_LARGE = (
    _Block(3, 16, 16, False, "relu", 1),
    _Block(3, 64, 24, False, "relu", 2),
    _Block(3, 72, 24, False, "relu", 1),
    _Block(5, 72, 40, True, "relu", 2),
    _Block(5, 120, 40, True, "relu", 1),
    _Block(5, 120, 40, True, "relu", 1),
    _Block(3, 240, 80, False, "hard_swish", 2),
    _Block(3, 200, 80, False, "hard_swish", 1),
    _Block(3, 184, 80, False, "hard_swish", 1),
    _Block(3, 184, 80, False, "hard_swish", 1),
    _Block(3, 480, 112, True, "hard_swish", 1),
    _Block(3, 672, 112, True, "hard_swish", 1),
    _Block(5, 672, 160, True, "hard_swish", 2),
    _Block(5, 960, 160, True, "hard_swish", 1),
    _Block(5, 960, 160, True, "hard_swish", 1),
)
_SMALL = (
    _Block(3, 16, 16, True, "relu", 2),
    _Block(3, 72, 24, False, "relu", 2),
    _Block(3, 88, 24, False, "relu", 1),
    _Block(5, 96, 40, True, "hard_swish", 2),
    _Block(5, 240, 40, True, "hard_swish", 1),
    _Block(5, 240, 40, True, "hard_swish", 1),
    _Block(5, 120, 48, True, "hard_swish", 1),
    _Block(5, 144, 48, True, "hard_swish", 1),
    _Block(5, 288, 96, True, "hard_swish", 2),
    _Block(5, 576, 96, True, "hard_swish", 1),
    _Block(5, 576, 96, True, "hard_swish", 1),
)
BLOCKS = {"large": _LARGE, "small": _SMALL}


def mobilenet_v3(
    size: str,
    input_shape: tuple[int | None, int | None, int] = (None, None, 3),
    *,
    dilated_early: bool = False,
    padding: str = "symmetric",
    epsilon: float = 1e-3,
) -> keras.Model:
    """Builds MobileNetV3 up to its last 1x1 convolution, in torchvision's layout.

    Args:
        size: "large" or "small".
        input_shape: (height, width, channels) without the batch, None for any size.
        dilated_early: False for the classifier's network, of output stride 32, whose rates follow
            from the output stride. True for the network that torchvision trained, of output stride
            16: the depthwise convolution that loses its stride is dilated too, and not only those
            behind it. Its weights want it so.
        padding: In front of strides: "symmetric" (torchvision), TensorFlow's "same", or "end", as
            keras.applications: one less in front than at the end, at any size, and "same" at the
            first convolution.
        epsilon: Of the batch norms.

    Returns:
        A functional model from scaled pixels `(batch, height, width, channels)` to features
        `(batch, ceil(height / 32), ceil(width / 32), 960)`, 576 channels for small.

    Raises:
        ValueError: If an argument is not one of those named.

    Reference:
        [Howard et al., 2019, MobileNetV3](https://arxiv.org/abs/1905.02244), tables 1 and 2.
    """
    if size not in BLOCKS:
        raise ValueError(f"`size` must be one of {sorted(BLOCKS)}, received {size!r}.")
    shared = {"padding": checked_padding(padding), "epsilon": epsilon}
    inputs = image_input(input_shape)
    first = {**shared, "padding": stem_padding(padding)}
    x = conv_norm(inputs, 16, 3, "stem", stride=2, activation="hard_swish", **first)
    blocks, rate = BLOCKS[size], 1
    last_stride = max(index for index, block in enumerate(blocks) if block.stride == 2)
    for index, block in enumerate(blocks):
        if dilated_early and index == last_stride:
            block, rate = block._replace(stride=1), 2
        x = _inverted_residual(x, block, rate, f"block{index}", **shared)
    x = conv_norm(x, 6 * x.shape[-1], 1, "last", epsilon=epsilon, activation="hard_swish")
    return keras.Model(inputs, x, name=f"mobilenet_v3_{size}")


def _inverted_residual(
    x: Any, block: _Block, rate: int, name: str, padding: str, epsilon: float
) -> Any:
    shortcut, depth = x, x.shape[-1]
    if block.expanded != depth:
        x = conv_norm(
            x,
            block.expanded,
            1,
            f"{name}_expand",
            epsilon=epsilon,
            activation=block.activation,
        )
    x, how = pad_for_stride(x, block.kernel, block.stride, f"{name}_depthwise_pad", padding)
    x = kl.DepthwiseConv2D(
        block.kernel,
        strides=block.stride,
        padding=how,
        dilation_rate=rate,
        use_bias=False,
        depthwise_initializer="he_normal",
        name=f"{name}_depthwise_conv",
    )(x)
    x = norm(x, f"{name}_depthwise_norm", epsilon)
    x = kl.Activation(block.activation, name=f"{name}_depthwise_act")(x)
    if block.squeeze:
        x = _squeeze_excite(x, multiple_of(8, block.expanded / 4), f"{name}_squeeze")
    x = conv_norm(x, block.channels, 1, f"{name}_project", epsilon=epsilon, activation=None)
    if block.stride == 1 and depth == block.channels:
        x = kl.Add(name=f"{name}_add")([shortcut, x])
    return x


def _squeeze_excite(x: Any, squeezed: int, name: str) -> Any:
    """Every channel scaled by what the whole map says."""
    scale = kl.GlobalAveragePooling2D(keepdims=True, name=f"{name}_pool")(x)
    scale = kl.Conv2D(squeezed, 1, activation="relu", name=f"{name}_reduce")(scale)
    scale = kl.Conv2D(x.shape[-1], 1, activation="hard_sigmoid", name=f"{name}_expand")(scale)
    return kl.Multiply(name=f"{name}_scale")([x, scale])
