"""The building blocks that backbones share, as functions on symbolic tensors."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers as kl

from keras_deeplab.layers import BatchNormalization

PADDINGS = ("symmetric", "same", "end")


def norm(x: Any, name: str, epsilon: float, momentum: float = 0.9) -> Any:
    """Batch norm over the channels."""
    return BatchNormalization(epsilon=epsilon, momentum=momentum, name=name)(x)


def checked_padding(padding: str) -> str:
    """The padding in front of strides, which must be one of the known ones."""
    if padding not in PADDINGS:
        raise ValueError(f"`padding` must be one of {PADDINGS}, received {padding!r}.")
    return padding


def checked_rates(name: str, rates: Any, count: int = 3) -> tuple[int, ...]:
    """A fixed number of positive integers."""
    if (
        not isinstance(rates, list | tuple)
        or len(rates) != count
        or any(not isinstance(rate, int) or rate < 1 for rate in rates)
    ):
        raise ValueError(f"`{name}` must be {count} positive integers, received {rates!r}.")
    return tuple(rates)


def stem_padding(padding: str) -> str:
    """That of the first convolution: keras.applications' MobileNets, which pad at the end, do not
    do so there.
    """
    return "same" if padding == "end" else padding


def pad_for_stride(
    x: Any, kernel_size: int, stride: int, name: str, padding: str = "symmetric"
) -> tuple[Any, str]:
    """Padding before a strided kernel.

    "symmetric" pads equally on both sides, so that all sizes share one grid; "same" is TensorFlow's
    rule, which samples even and odd sizes at different places; "end" pads one less in front than
    "symmetric", at any size, as keras.applications' MobileNets do.

    Returns:
        The padded tensor and the padding that the kernel itself is left to do.
    """
    if stride == 1 or kernel_size == 1 or padding == "same":
        return x, "same"
    end = (kernel_size - 1) // 2
    begin = end if padding == "symmetric" else end - 1
    return kl.ZeroPadding2D(((begin, end), (begin, end)), name=name)(x), "valid"


def conv_norm(
    x: Any,
    filters: int,
    kernel_size: int,
    name: str,
    *,
    stride: int = 1,
    rate: int = 1,
    padding: str = "symmetric",
    epsilon: float = 1e-5,
    activation: str | None = "relu",
) -> Any:
    """Convolution without bias, batch norm, activation."""
    x, padding = pad_for_stride(x, kernel_size, stride, f"{name}_pad", padding)
    x = kl.Conv2D(
        filters,
        kernel_size,
        strides=stride,
        padding=padding,
        dilation_rate=rate,
        use_bias=False,
        kernel_initializer="he_normal",
        name=f"{name}_conv",
    )(x)
    x = norm(x, f"{name}_norm", epsilon)
    return x if activation is None else kl.Activation(activation, name=f"{name}_act")(x)


def image_input(input_shape: tuple[int | None, int | None, int]) -> keras.KerasTensor:
    """The input of a backbone."""
    return keras.Input(input_shape, name="pixels")


def multiple_of(divisor: int, channels: float) -> int:
    """The nearest multiple of a number, from the number itself, at most a tenth too small."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * channels else rounded + divisor
