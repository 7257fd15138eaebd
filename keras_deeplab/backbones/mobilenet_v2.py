"""MobileNetV2."""

from __future__ import annotations

import keras

from keras_deeplab.backbones.blocks import conv_norm, inverted_residual, multiple_of, stem_padding
from keras_deeplab.validation import integer, positive

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
        depth_multiplier: Factor of all channels.
        divisible_by: What the channels of the blocks' outputs are multiples of; `None` for
            DeepLab's rule, 8 at a depth multiplier of 1 and 1 (whole numbers) at any other. The
            ImageNet classifiers have 8 throughout, as has what lies inside the blocks.
        classifier_conv: Whether the classifier's last 1x1 convolution, of 1280 channels (times the
            depth multiplier above 1), follows.

    The other arguments are those of `build`.

    Returns:
        A network to features `(batch, ceil(height / 32), ceil(width / 32), 320 *
        depth_multiplier)`; rounded down with padding "end".

    Reference:
        [Sandler et al., 2018, MobileNetV2](https://arxiv.org/abs/1801.04381), table 2.
    """
    positive("depth_multiplier", depth_multiplier)
    if divisible_by is None:
        divisible_by = 8 if depth_multiplier == 1 else 1
    integer("divisible_by", divisible_by)
    inputs = keras.Input(input_shape, name="pixels")
    width = multiple_of(divisible_by, 32 * depth_multiplier)
    options = {"activation": "relu6", "epsilon": epsilon}
    x = conv_norm(inputs, width, 3, "stem", stride=2, padding=stem_padding(padding), **options)
    options["padding"] = padding
    block = 0
    for expansion, channels, repeats, first_stride in STAGES:
        for repeat in range(repeats):
            depth = x.shape[-1]
            expanded = multiple_of(8, expansion * depth) if expansion > 1 else depth
            width = multiple_of(divisible_by, channels * depth_multiplier)
            stride = first_stride if repeat == 0 else 1
            x = inverted_residual(x, expanded, width, f"block{block}", stride=stride, **options)
            block += 1
    if classifier_conv:
        width = multiple_of(divisible_by, 1280 * max(1, depth_multiplier))
        x = conv_norm(x, width, 1, "classifier", **options)
    return keras.Model(inputs, x, name="mobilenet_v2")
