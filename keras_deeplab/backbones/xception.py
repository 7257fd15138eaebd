"""The aligned Xception of DeepLabV3+, with 41, 65 and 71 layers."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers as kl

from keras_deeplab.backbones.blocks import check_multi_grid, conv_norm
from keras_deeplab.layers import AtrousSeparableConv2D
from keras_deeplab.validation import one_of

# Entry flow: channels and stride of each block.
ENTRY = {
    41: ((128, 2), (256, 2), (728, 2)),
    65: ((128, 2), (256, 2), (728, 2)),
    71: ((128, 2), (256, 1), (256, 2), (728, 1), (728, 2)),
}
MIDDLE_UNITS = {41: 8, 65: 16, 71: 16}


def xception(
    depth: int,
    input_shape: tuple[int | None, int | None, int] = (None, None, 3),
    *,
    multi_grid: tuple[int, int, int] = (1, 1, 1),
    epsilon: float = 1e-3,
) -> keras.Model:
    """Builds the aligned Xception without its classifier, at its own output stride of 32.

    Against the original Xception, poolings are strided separable convolutions, a batch norm
    follows each depthwise convolution, and the entry and middle flows are deeper. Within a unit
    nothing is rectified between depthwise and 1x1, and nothing after the sum.

    Args:
        depth: 41, 65 or 71.

    The other arguments are those of `build`.

    Returns:
        A network to features `(batch, ceil(height / 32), ceil(width / 32), 2048)`.

    Reference:
        [Chen et al., 2018, DeepLabV3+](https://arxiv.org/abs/1802.02611), figure 4; the
        released code for 41 and 71.
    """
    one_of("depth", depth, ENTRY)
    check_multi_grid(multi_grid)
    inputs = keras.Input(input_shape, name="pixels")
    x = conv_norm(inputs, 32, 3, "stem1", stride=2, epsilon=epsilon)
    x = conv_norm(x, 64, 3, "stem2", epsilon=epsilon)
    for index, (filters, stride) in enumerate(ENTRY[depth], 1):
        x = _unit(x, (filters,) * 3, stride, f"entry{index}", epsilon)
    for index in range(1, MIDDLE_UNITS[depth] + 1):
        x = _unit(x, (728,) * 3, 1, f"middle{index}", epsilon)
    x = _unit(x, (728, 1024, 1024), 2, "exit1", epsilon)
    for index, (filters, rate) in enumerate(zip((1536, 1536, 2048), multi_grid, strict=True), 1):
        x = AtrousSeparableConv2D(
            filters, dilation_rate=rate, epsilon=epsilon, name=f"exit2_conv{index}"
        )(x)
    return keras.Model(inputs, x, name=f"xception{depth}")


def _unit(x: Any, filters: tuple[int, ...], stride: int, name: str, epsilon: float) -> Any:
    """Three separable convolutions, the stride on the last, beside a shortcut."""
    shortcut = x
    if stride > 1 or x.shape[-1] != filters[-1]:
        shortcut = conv_norm(
            x, filters[-1], 1, f"{name}_shortcut", stride=stride, epsilon=epsilon, activation=None
        )
    options = {"depthwise_activation": False, "activation": None, "epsilon": epsilon}
    for index, (width, own) in enumerate(zip(filters, (1, 1, stride), strict=True), 1):
        x = kl.ReLU(name=f"{name}_act{index}")(x)
        x = AtrousSeparableConv2D(width, strides=own, name=f"{name}_conv{index}", **options)(x)
    return kl.Add(name=f"{name}_add")([shortcut, x])
