"""Atrous convolutions with their norm and activation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import layers as kl

from keras_deeplab.layers.batch_norm import BatchNormalization
from keras_deeplab.layers.composite import CompositeLayer
from keras_deeplab.layers.dilated_conv import Conv2D, DepthwiseConv2D
from keras_deeplab.validation import error, integer, pair


class _AtrousConvolution(CompositeLayer):
    """Base of both convolutions: the settings, the padding and the rule of dilation."""

    # The layers inside in order, None for those that the settings leave out.
    _steps: Callable[[], tuple[kl.Layer | None, ...]]

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
        self.filters = integer("filters", filters)
        # An even kernel has no centre to keep on the grid.
        self.kernel_size = pair("kernel_size", kernel_size, odd=True)
        self.strides = pair("strides", strides)
        self.dilation_rate = pair("dilation_rate", dilation_rate)
        if max(self.strides) > 1 and max(self.dilation_rate) > 1:
            raise error("dilation_rate", f"1 with `strides` {strides!r}", dilation_rate)
        self.batch_norm = batch_norm
        self.activation = keras.activations.get(activation)
        self.epsilon = epsilon
        self.momentum = momentum
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        # "same" with a stride samples even and odd sizes at different places; equal padding on
        # both sides keeps the samples at the pixels 0, stride, 2 * stride, ... of every image.
        self.pad = None
        if max(self.strides) > 1:
            margins = tuple((kernel - 1) // 2 for kernel in self.kernel_size)
            self.pad = kl.ZeroPadding2D(margins, name="pad", dtype=self.dtype_policy)

    def _spatial(self) -> dict[str, Any]:
        """Arguments of the convolution that has the kernel size."""
        options = {"strides": self.strides, "dilation_rate": self.dilation_rate}
        padding = "same" if self.pad is None else "valid"
        return {"kernel_size": self.kernel_size, "padding": padding, **options}

    def _shared(self, initializer: str) -> dict[str, Any]:
        """Arguments of every convolution."""
        own = self.kernel_initializer
        # A copy: a shared initializer would give every kernel the same values.
        if isinstance(own, keras.initializers.Initializer):  # a function has no `clone`
            own = own.clone()
        return {"use_bias": not self.batch_norm, initializer: own, "dtype": self.dtype_policy}

    def _norm(self, name: str) -> kl.Layer | None:
        if not self.batch_norm:
            return None
        options = {"epsilon": self.epsilon, "momentum": self.momentum, "dtype": self.dtype_policy}
        return BatchNormalization(**options, name=name)

    def _activation(self, name: str) -> kl.Layer | None:
        if self.activation is keras.activations.linear:
            return None
        return kl.Activation(self.activation, name=name, dtype=self.dtype_policy)

    def call(self, x: Any) -> Any:
        for layer in self._steps():
            x = x if layer is None else layer(x)
        return x

    def dilated_config(self, rate: tuple[int, int]) -> dict[str, Any]:
        """The configuration without stride, its kernel dilated by `rate` if larger than 1."""
        dilation = tuple(
            old * factor if kernel > 1 else 1
            for old, factor, kernel in zip(self.dilation_rate, rate, self.kernel_size, strict=True)
        )
        return {**self.get_config(), "strides": (1, 1), "dilation_rate": dilation}

    def get_config(self) -> dict[str, Any]:
        names = "filters kernel_size strides dilation_rate batch_norm epsilon momentum".split()
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in names},
            "activation": keras.activations.serialize(self.activation),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


@keras.saving.register_keras_serializable(package="keras_deeplab")
class AtrousConv2D(_AtrousConvolution):
    """Atrous convolution, batch norm and activation, as DeepLab stacks them.

    At stride 1 the output has the input's size; with a stride the padding is the same on both
    sides, so that even and odd sizes share one grid.

    Args:
        filters: Number of output channels.
        kernel_size: Odd integer, or two for height and width.
        strides: Integer or two.
        dilation_rate: Integer or two. Not above 1 together with a stride above 1.
        batch_norm: Whether a batch norm follows; without one the convolution has a bias.
        activation: Name or function, applied last. `None` for none.
        epsilon, momentum: Of the batch norm.
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
        shared = self._shared("kernel_initializer")
        self.conv = Conv2D(filters, **self._spatial(), **shared, name="conv")
        self.norm = self._norm("norm")
        self.act = self._activation("act")

    def _steps(self) -> tuple[kl.Layer | None, ...]:
        return (self.pad, self.conv, self.norm, self.act)


@keras.saving.register_keras_serializable(package="keras_deeplab")
class AtrousSeparableConv2D(_AtrousConvolution):
    """Atrous depthwise convolution followed by a 1x1 convolution, each with its batch norm.

    Args:
        depthwise_activation: Whether the activation also stands between the two convolutions, as
            in the head of DeepLabV3+ (yes) or inside the units of its Xception (no).

    The other arguments (of both convolutions), shapes and errors are those of `AtrousConv2D`.

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
        shared = self._shared("depthwise_initializer")
        self.depthwise = DepthwiseConv2D(**self._spatial(), **shared, name="depthwise")
        self.depthwise_norm = self._norm("depthwise_norm")
        self.depthwise_act = self._activation("depthwise_act") if depthwise_activation else None
        shared = self._shared("kernel_initializer")
        self.pointwise = kl.Conv2D(filters, 1, **shared, name="pointwise")
        self.pointwise_norm = self._norm("pointwise_norm")
        self.pointwise_act = self._activation("pointwise_act")

    def _steps(self) -> tuple[kl.Layer | None, ...]:
        first = (self.pad, self.depthwise, self.depthwise_norm, self.depthwise_act)
        return (*first, self.pointwise, self.pointwise_norm, self.pointwise_act)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "depthwise_activation": self.depthwise_activation}
