"""The building blocks that backbones share, as functions on symbolic tensors."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers as kl


def norm(x: Any, name: str, epsilon: float, momentum: float = 0.9) -> Any:
    """Batch norm over the channels."""
    return kl.BatchNormalization(epsilon=epsilon, momentum=momentum, name=name)(x)


def pad_for_stride(x: Any, kernel_size: int, stride: int, name: str) -> tuple[Any, str]:
    """Padding before a strided kernel: equal on both sides, so that all sizes share one grid.

    Returns:
        The padded tensor and the padding that the kernel itself is left to do.
    """
    if stride == 1 or kernel_size == 1:
        return x, "same"
    return kl.ZeroPadding2D((kernel_size - 1) // 2, name=name)(x), "valid"


def conv_norm(
    x: Any,
    filters: int,
    kernel_size: int,
    name: str,
    *,
    stride: int = 1,
    rate: int = 1,
    epsilon: float = 1e-5,
    activation: str | None = "relu",
) -> Any:
    """Convolution without bias, batch norm, activation."""
    x, padding = pad_for_stride(x, kernel_size, stride, f"{name}_pad")
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
