"""The building blocks that backbones share, as functions on symbolic tensors."""

from __future__ import annotations

from typing import Any

from keras import layers as kl

from keras_deeplab.layers import BatchNormalization, Conv2D, DepthwiseConv2D
from keras_deeplab.validation import error, integers, one_of


def check_multi_grid(rates: Any) -> None:
    """Checks the rates of a last stage's three units."""
    if len(integers("multi_grid", rates)) != 3:
        raise error("multi_grid", "a list of 3 positive integers", rates)


def stem_padding(padding: str) -> str:
    """Padding of the first convolution: keras.applications' MobileNets do not pad the end there."""
    one_of("padding", padding, ("symmetric", "same", "end"))
    return "same" if padding == "end" else padding


def conv_norm(
    x: Any,
    filters: int | None,
    kernel_size: int,
    name: str,
    *,
    stride: int = 1,
    rate: int = 1,
    padding: str = "symmetric",
    epsilon: float = 1e-5,
    activation: str | None = "relu",
) -> Any:
    """Convolution without bias, depthwise where `filters` is None; batch norm, activation.

    The kinds of padding before a strided kernel are explained in `build`.
    """
    pads = stride > 1 and kernel_size > 1 and padding != "same"
    if pads:
        end = (kernel_size - 1) // 2
        begin = end if padding == "symmetric" else end - 1
        x = kl.ZeroPadding2D(((begin, end), (begin, end)), name=f"{name}_pad")(x)
    options = {
        "strides": stride,
        "padding": "valid" if pads else "same",
        "dilation_rate": rate,
        "use_bias": False,
        "name": f"{name}_conv",
    }
    if filters is None:
        x = DepthwiseConv2D(kernel_size, depthwise_initializer="he_uniform", **options)(x)
    else:
        x = Conv2D(filters, kernel_size, kernel_initializer="he_uniform", **options)(x)
    x = BatchNormalization(epsilon=epsilon, momentum=0.9, name=f"{name}_norm")(x)
    return x if activation is None else kl.Activation(activation, name=f"{name}_act")(x)


def inverted_residual(
    x: Any,
    expanded: int,
    channels: int,
    name: str,
    *,
    kernel_size: int = 3,
    stride: int = 1,
    rate: int = 1,
    squeeze: bool = False,
    activation: str = "relu6",
    padding: str = "symmetric",
    epsilon: float = 1e-3,
) -> Any:
    """1x1 expansion, depthwise, squeeze-and-excite, 1x1 projection, residual connection."""
    shortcut, depth = x, x.shape[-1]
    options = {"activation": activation, "epsilon": epsilon}
    if expanded != depth:
        x = conv_norm(x, expanded, 1, f"{name}_expand", **options)
    spatial = {"stride": stride, "rate": rate, "padding": padding}
    x = conv_norm(x, None, kernel_size, f"{name}_depthwise", **spatial, **options)
    if squeeze:
        x = _squeeze_excite(x, multiple_of(8, expanded / 4), f"{name}_squeeze")
    x = conv_norm(x, channels, 1, f"{name}_project", epsilon=epsilon, activation=None)
    if stride == 1 and depth == channels:
        x = kl.Add(name=f"{name}_add")([shortcut, x])
    return x


def _squeeze_excite(x: Any, squeezed: int, name: str) -> Any:
    scale = kl.GlobalAveragePooling2D(keepdims=True, name=f"{name}_pool")(x)
    scale = kl.Conv2D(squeezed, 1, activation="relu", name=f"{name}_reduce")(scale)
    scale = kl.Conv2D(x.shape[-1], 1, activation="hard_sigmoid", name=f"{name}_expand")(scale)
    return kl.Multiply(name=f"{name}_scale")([x, scale])


def multiple_of(divisor: int, channels: float) -> int:
    """The nearest multiple of a number, from the number itself, at most a tenth too small."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * channels else rounded + divisor
