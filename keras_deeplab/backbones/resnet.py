"""ResNet with bottleneck units: the published one, and the one that DeepLab's authors released."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers as kl

from keras_deeplab.backbones.blocks import check_multi_grid, conv_norm
from keras_deeplab.validation import error, one_of

UNITS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
BETA_DEPTHS = (50, 101)


def resnet(
    depth: int,
    input_shape: tuple[int | None, int | None, int] = (None, None, 3),
    *,
    multi_grid: tuple[int, int, int] = (1, 1, 1),
    stride_on: str = "3x3",
    cascade: bool = False,
    pool_ceil: bool = False,
    epsilon: float = 1e-5,
) -> keras.Model:
    """Builds a ResNet without its classifier, at its own output stride of 32.

    Args:
        depth: 50, 101 or 152.
        multi_grid: Rates of the last stage's three units, in a cascade of the last four stages'.
            The first must be 1 if the stride is on the 3x3.
        stride_on: The convolution that carries a unit's stride: "3x3" (torchvision) or "1x1" (He
            et al., keras.applications).
        cascade: Whether three copies of the last stage follow, each with a stride of 2: the
            network's own output stride is then 256.
        pool_ceil: Whether the first pooling rounds the size of an even map up, as Caffe does: the
            released DeepLab V2 was trained with it.

    The other arguments are those of `build`.

    Returns:
        A network to features `(batch, ceil(height / 32), ceil(width / 32), 2048)`.

    Reference:
        [He et al., 2015, Deep Residual Learning](https://arxiv.org/abs/1512.03385), table 1;
        multi-grid and cascade: [Chen et al., 2017, DeepLabV3](https://arxiv.org/abs/1706.05587),
        sections 3.2 and 3.2.1, figure 3.
    """
    one_of("depth", depth, UNITS)
    one_of("stride_on", stride_on, ("1x1", "3x3"))
    check_multi_grid(multi_grid)
    if stride_on == "3x3" and multi_grid[0] != 1:
        rule = 'a list that begins with 1 when `stride_on` is "3x3", which has the stride'
        raise error("multi_grid", rule, multi_grid)
    inputs = keras.Input(input_shape, name="pixels")
    x = conv_norm(inputs, 64, 7, "stem", stride=2, epsilon=epsilon)
    pads = (1, 2) if pool_ceil else (1, 1)  # after a ReLU, padded zeros never exceed the maximum
    x = kl.ZeroPadding2D((pads, pads), name="stem_pool_pad")(x)
    x = kl.MaxPooling2D(3, 2, name="stem_pool")(x)
    stages = UNITS[depth] + (3, 3, 3) * cascade
    for index, units in enumerate(stages):
        for unit in range(units):
            width, stride = 64 * 2 ** min(index, 3), 2 if unit == 0 and index > 0 else 1
            name, shortcut = f"stage{index + 1}_unit{unit + 1}", x
            if unit == 0:
                options = {"stride": stride, "epsilon": epsilon, "activation": None}
                shortcut = conv_norm(x, 4 * width, 1, f"{name}_0", **options)
            strides = (stride, 1) if stride_on == "1x1" else (1, stride)
            rate = multi_grid[unit] if index >= 3 else 1
            x = _unit(x, shortcut, width, strides, rate, epsilon, name)
    return keras.Model(inputs, x, name=f"resnet{depth}")


def resnet_beta(
    depth: int,
    input_shape: tuple[int | None, int | None, int] = (None, None, 3),
    *,
    multi_grid: tuple[int, int, int] = (1, 1, 1),
    epsilon: float = 1e-5,
) -> keras.Model:
    """Builds the "beta" ResNet without its classifier, at its own output stride of 32.

    Three 3x3 convolutions take the place of the 7x7, and a stage's stride is on the 3x3 of its last
    unit instead of its first.

    Args:
        depth: 50 or 101.

    The other arguments are those of `build`.

    Returns:
        A network to features `(batch, ceil(height / 32), ceil(width / 32), 2048)`.

    Reference:
        [Chen et al., 2017, DeepLabV3](https://arxiv.org/abs/1706.05587), in the released code.
    """
    one_of("depth", depth, BETA_DEPTHS)
    check_multi_grid(multi_grid)
    inputs = keras.Input(input_shape, name="pixels")
    x = conv_norm(inputs, 64, 3, "stem1", stride=2, epsilon=epsilon)
    x = conv_norm(x, 64, 3, "stem2", epsilon=epsilon)
    x = conv_norm(x, 128, 3, "stem3", epsilon=epsilon)
    x = kl.MaxPooling2D(3, 2, padding="same", name="stem_pool")(x)
    for index, units in enumerate(UNITS[depth]):
        for unit in range(units):
            width, stride = 64 * 2**index, 2 if unit == units - 1 and index < 3 else 1
            name, shortcut = f"stage{index + 1}_unit{unit + 1}", x
            if unit == 0:
                options = {"epsilon": epsilon, "activation": None}
                shortcut = conv_norm(x, 4 * width, 1, f"{name}_0", **options)
            if stride > 1:
                shortcut = kl.MaxPooling2D(1, stride, name=f"{name}_subsample")(shortcut)
            rate = multi_grid[unit] if index == 3 else 1
            x = _unit(x, shortcut, width, (1, stride), rate, epsilon, name)
    return keras.Model(inputs, x, name=f"resnet{depth}_beta")


def _unit(
    x: Any,
    shortcut: Any,
    width: int,
    strides: tuple[int, int],
    rate: int,
    epsilon: float,
    name: str,
) -> Any:
    """A bottleneck's 1x1, 3x3 and 1x1 convolutions, added to the shortcut."""
    x = conv_norm(x, width, 1, f"{name}_1", stride=strides[0], epsilon=epsilon)
    x = conv_norm(x, width, 3, f"{name}_2", stride=strides[1], rate=rate, epsilon=epsilon)
    x = conv_norm(x, 4 * width, 1, f"{name}_3", epsilon=epsilon, activation=None)
    x = kl.Add(name=f"{name}_add")([shortcut, x])
    return kl.Activation("relu", name=f"{name}_out")(x)
