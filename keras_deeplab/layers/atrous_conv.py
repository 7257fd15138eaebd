"""Atrous convolutions with their norm and activation."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers as kl

from keras_deeplab.layers.batch_norm import BatchNormalization
from keras_deeplab.layers.composite import CompositeLayer


def odd_pair(name: str, value: int | tuple[int, int]) -> tuple[int, int]:
    """Two odd positive integers: an even kernel has no centre to keep on the grid."""
    pair = positive_pair(name, value)
    if any(number % 2 == 0 for number in pair):
        raise ValueError(f"`{name}` must be odd, received {value!r}.")
    return pair


def positive_pair(name: str, value: int | tuple[int, int]) -> tuple[int, int]:
    """Two positive integers, from one or two."""
    pair = tuple(value) if isinstance(value, list | tuple) else (value, value)
    if len(pair) != 2 or any(not isinstance(n, int) or n < 1 for n in pair):
        raise ValueError(f"`{name}` must be one or two positive integers, received {value!r}.")
    return pair


class _AtrousConvolution(CompositeLayer):
    """What both convolutions share: the settings, the padding and the rule of dilation."""

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, int] = 3,
        strides: int | tuple[int, int] = 1,
        dilation_rate: int | tuple[int, int] = 1,
        batch_norm: bool = True,
        activation: Any = "relu",
        epsilon: float = 1e-5,
        momentum: float = 0.9,
        kernel_initializer: Any = "he_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not isinstance(filters, int) or filters < 1:
            raise ValueError(f"`filters` must be a positive integer, received {filters!r}.")
        self.filters = filters
        self.kernel_size = odd_pair("kernel_size", kernel_size)
        self.strides = positive_pair("strides", strides)
        self.dilation_rate = positive_pair("dilation_rate", dilation_rate)
        if max(self.strides) > 1 and max(self.dilation_rate) > 1:
            raise ValueError(
                "`strides` and `dilation_rate` cannot both be above 1, received "
                f"{strides!r} and {dilation_rate!r}."
            )
        self.batch_norm = batch_norm
        self.activation = keras.activations.get(activation)
        self.epsilon = epsilon
        self.momentum = momentum
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.pad = self._padding()

    def _padding(self) -> kl.Layer | None:
        # "same" with a stride samples even and odd sizes at different places; equal padding on
        # both sides keeps the samples at the pixels 0, stride, 2 * stride, ... of every image.
        if max(self.strides) == 1:
            return None
        height, width = ((kernel - 1) // 2 for kernel in self.kernel_size)
        return kl.ZeroPadding2D((height, width), name="pad", dtype=self.dtype_policy)

    def _norm(self, name: str) -> kl.Layer | None:
        if not self.batch_norm:
            return None
        return BatchNormalization(
            epsilon=self.epsilon, momentum=self.momentum, name=name, dtype=self.dtype_policy
        )

    def _activation(self, name: str) -> kl.Layer:
        return kl.Activation(self.activation, name=name, dtype=self.dtype_policy)

    def _initializer(self) -> Any:
        """A copy of the initializer: a shared one would give every kernel the same values."""
        return self.kernel_initializer.clone()

    def dilated_config(self, rate: tuple[int, int]) -> dict[str, Any]:
        """The configuration without stride, its kernel dilated by `rate` if larger than 1."""
        dilation = tuple(
            old * factor if kernel > 1 else 1
            for old, factor, kernel in zip(self.dilation_rate, rate, self.kernel_size, strict=True)
        )
        return {**self.get_config(), "strides": (1, 1), "dilation_rate": dilation}

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "dilation_rate": self.dilation_rate,
            "batch_norm": self.batch_norm,
            "activation": keras.activations.serialize(self.activation),
            "epsilon": self.epsilon,
            "momentum": self.momentum,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


@keras.saving.register_keras_serializable(package="keras_deeplab")
class AtrousConv2D(_AtrousConvolution):
    """Atrous convolution, batch norm and activation, as DeepLab stacks them.

    The kernel's taps are `dilation_rate` pixels apart: a 3x3 kernel at rate 12 sees 25x25 pixels
    with the weights and the cost of a 3x3. At stride 1 the output has the input's size; with a
    stride the padding is the same on both sides, so that even and odd sizes share one grid.

    Args:
        filters: Number of output channels.
        kernel_size: Odd integer, or two for height and width.
        strides: Integer or two.
        dilation_rate: Integer or two. Not above 1 together with a stride above 1.
        batch_norm: Whether a batch norm follows; without one the convolution has a bias.
        activation: Name or function, applied last. `None` for none.
        epsilon: Of the batch norm.
        momentum: Of the batch norm's moving statistics.
        kernel_initializer: For the kernel.

    Input shape:
        `(batch, height, width, channels)`, float.

    Output shape:
        `(batch, ceil(height / stride), ceil(width / stride), filters)`

    Raises:
        ValueError: If a number is out of its range, or stride and rate are both above 1.

    Example:

    >>> x = keras.random.normal((1, 33, 33, 256))
    >>> keras_deeplab.layers.AtrousConv2D(256, 3, dilation_rate=12)(x).shape
    TensorShape([1, 33, 33, 256])

    Reference:
        [Chen et al., 2017, DeepLab](https://arxiv.org/abs/1606.00915), section 3.1.
    """

    def __init__(self, filters: int, kernel_size: int | tuple[int, int] = 3, **kwargs: Any) -> None:
        super().__init__(filters, kernel_size, **kwargs)
        self.conv = kl.Conv2D(
            filters,
            self.kernel_size,
            strides=self.strides,
            padding="same" if self.pad is None else "valid",
            dilation_rate=self.dilation_rate,
            use_bias=not self.batch_norm,
            kernel_initializer=self._initializer(),
            name="conv",
            dtype=self.dtype_policy,
        )
        self.norm = self._norm("norm")
        self.act = self._activation("act")

    def call(self, x: Any) -> Any:
        """Convolution, norm, activation."""
        for layer in (self.pad, self.conv, self.norm, self.act):
            x = x if layer is None else layer(x)
        return x


@keras.saving.register_keras_serializable(package="keras_deeplab")
class AtrousSeparableConv2D(_AtrousConvolution):
    """Atrous depthwise convolution followed by a 1x1 convolution, each with its batch norm.

    Args:
        filters: Number of output channels.
        kernel_size: Odd integer, or two, of the depthwise convolution.
        strides: Integer or two.
        dilation_rate: Integer or two. Not above 1 together with a stride above 1.
        depthwise_activation: Whether the activation also stands between the two convolutions, as
            in the head of DeepLabV3+ (yes) or inside the units of its Xception (no).
        batch_norm: Whether a batch norm follows each convolution; without it they have biases.
        activation: Name or function. `None` for none.
        epsilon: Of the batch norms.
        momentum: Of the batch norms' moving statistics.
        kernel_initializer: For both kernels.

    Input shape:
        `(batch, height, width, channels)`, float.

    Output shape:
        `(batch, ceil(height / stride), ceil(width / stride), filters)`

    Raises:
        ValueError: If a number is out of its range, or stride and rate are both above 1.

    Example:

    >>> x = keras.random.normal((1, 33, 33, 256))
    >>> keras_deeplab.layers.AtrousSeparableConv2D(256, 3, dilation_rate=6)(x).shape
    TensorShape([1, 33, 33, 256])

    Reference:
        [Chen et al., 2018, DeepLabV3+](https://arxiv.org/abs/1802.02611), section 3.1.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, int] = 3,
        depthwise_activation: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(filters, kernel_size, **kwargs)
        self.depthwise_activation = depthwise_activation
        self.depthwise = kl.DepthwiseConv2D(
            self.kernel_size,
            strides=self.strides,
            padding="same" if self.pad is None else "valid",
            dilation_rate=self.dilation_rate,
            use_bias=not self.batch_norm,
            depthwise_initializer=self._initializer(),
            name="depthwise",
            dtype=self.dtype_policy,
        )
        self.depthwise_norm = self._norm("depthwise_norm")
        self.depthwise_act = self._activation("depthwise_act") if depthwise_activation else None
        self.pointwise = kl.Conv2D(
            filters,
            1,
            use_bias=not self.batch_norm,
            kernel_initializer=self._initializer(),
            name="pointwise",
            dtype=self.dtype_policy,
        )
        self.pointwise_norm = self._norm("pointwise_norm")
        self.pointwise_act = self._activation("pointwise_act")

    def call(self, x: Any) -> Any:
        """Depthwise convolution, 1x1 convolution."""
        first = (self.pad, self.depthwise, self.depthwise_norm, self.depthwise_act)
        second = (self.pointwise, self.pointwise_norm, self.pointwise_act)
        for layer in first + second:
            x = x if layer is None else layer(x)
        return x

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "depthwise_activation": self.depthwise_activation}
