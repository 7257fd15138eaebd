"""MobileNetV3, large and small."""

from __future__ import annotations

from typing import NamedTuple

import keras

from keras_deeplab.backbones.blocks import conv_norm, inverted_residual, stem_padding
from keras_deeplab.validation import one_of


class _Block(NamedTuple):
    kernel_size: int
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
        dilated_early: False for the classifier's network, of output stride 32; True for the one of
            16 that torchvision's segmentation weights need: the depthwise convolution that loses
            its stride is dilated too, and not only those behind it.

    The other arguments are those of `build`.

    Returns:
        A network to features `(batch, ceil(height / 32), ceil(width / 32), 960)`, 576 channels for
        small.

    Reference:
        [Howard et al., 2019, MobileNetV3](https://arxiv.org/abs/1905.02244), tables 1 and 2.
    """
    one_of("size", size, BLOCKS)
    inputs = keras.Input(input_shape, name="pixels")
    last = {"epsilon": epsilon, "activation": "hard_swish"}
    x = conv_norm(inputs, 16, 3, "stem", stride=2, padding=stem_padding(padding), **last)
    blocks, rate = BLOCKS[size], 1
    last_stride = max(index for index, block in enumerate(blocks) if block.stride == 2)
    for index, block in enumerate(blocks):
        options = {**block._asdict(), "padding": padding, "epsilon": epsilon}
        if dilated_early and index == last_stride:
            options["stride"], rate = 1, 2
        x = inverted_residual(x, name=f"block{index}", rate=rate, **options)
    x = conv_norm(x, 6 * x.shape[-1], 1, "last", **last)
    return keras.Model(inputs, x, name=f"mobilenet_v3_{size}")
