"""Pooling and padding on a dense feature map, in place of a strided pooling or convolution."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from keras_deeplab.layers.traced import TracedLayer
from keras_deeplab.validation import error, is_integer, one_of, pair

Pads = tuple[tuple[int, int], tuple[int, int]]


def aligned_pads(size: Any, kernel: int, stride: int, rate: int) -> tuple[Any, Any]:
    """Padding with which a dilated kernel starts where a strided one with "same" padding started.

    "same" depends on the size, an integer, a tensor or None, as soon as there is a stride: 3 taps
    at stride 2 begin with 0 on an even size and with 1 on an odd one. The map is `rate` times
    denser than that of the strided kernel.
    """
    if size is None:
        return (None, None)
    coarse = (size + rate - 1) // rate
    missing = ((coarse + stride - 1) // stride - 1) * stride + kernel - coarse
    missing = max(missing, 0) if isinstance(size, int) else tf.maximum(missing, 0)
    begin = rate * (missing // 2)
    return (begin, rate * (kernel - 1) - begin)


@keras.saving.register_keras_serializable(package="keras_deeplab")
class AtrousPadding2D(TracedLayer):
    """Zero padding that starts a dilated, stride-free convolution where a strided one started.

    `graph.with_output_stride` puts it before a convolution with padding `"same"` that had the
    strides `source_strides`, on a map that is `dilation_rate` times denser.
    """

    def __init__(
        self,
        kernel_size: tuple[int, int],
        source_strides: tuple[int, int],
        dilation_rate: tuple[int, int],
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.kernel_size = pair("kernel_size", kernel_size)
        self.source_strides = pair("source_strides", source_strides)
        self.dilation_rate = pair("dilation_rate", dilation_rate)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return tf.pad(x, _both_pads(self, x))

    def pads(self, axis: int, size: Any) -> tuple[Any, Any]:
        """Pixels put before and after a map of `size` pixels, along an axis (0 height, 1 width)."""
        shape = (self.kernel_size, self.source_strides, self.dilation_rate)
        return aligned_pads(size, *(pair[axis] for pair in shape))

    def get_config(self) -> dict[str, Any]:
        names = ("kernel_size", "source_strides", "dilation_rate")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def _both_pads(layer: AtrousPadding2D | AtrousPooling2D, x: tf.Tensor) -> list[Any]:
    """The paddings of all axes, as numbers along those whose size is known."""
    sizes = [x.shape[axis] or tf.shape(x)[axis] for axis in (1, 2)]
    return [(0, 0), layer.pads(0, sizes[0]), layer.pads(1, sizes[1]), (0, 0)]


@keras.saving.register_keras_serializable(package="keras_deeplab")
class AtrousPooling2D(TracedLayer):
    """Dilated max or average pooling with stride 1, made by `graph.with_output_stride`.

    Padding never enters the result: a maximum is taken over the real pixels, an average divides by
    their number, as Keras' own poolings do. `padding` is `"same"`, `"valid"` or `((top, bottom),
    (left, right))`; `"same"` with `source_strides` starts where a pooling of these strides did.
    """

    def __init__(
        self,
        pool_size: tuple[int, int],
        mode: str = "max",
        dilation_rate: tuple[int, int] = (1, 1),
        padding: str | Pads = "same",
        source_strides: tuple[int, int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.pool_size = pair("pool_size", pool_size)
        self.mode = one_of("mode", mode, ("max", "average"))
        self.dilation_rate = pair("dilation_rate", dilation_rate)
        self.padding = self._checked_padding(padding)
        if source_strides is not None:
            source_strides = pair("source_strides", source_strides)
        self.source_strides = source_strides

    def _checked_padding(self, padding: Any) -> str | Pads:
        if padding in ("same", "valid"):
            return padding
        pads = padding if isinstance(padding, list | tuple) and len(padding) == 2 else ((), ())
        for axis, both in enumerate(pads):
            known = isinstance(both, list | tuple) and len(both) == 2
            # A window inside the padding would cover no pixel.
            if not known or not all(is_integer(n, 0) and n <= self._margin(axis) for n in both):
                rule = '"same", "valid" or ((top, bottom), (left, right)), each below the window'
                raise error("padding", rule, padding)
        return tuple(map(tuple, pads))

    def call(self, x: tf.Tensor) -> tf.Tensor:
        pads = _both_pads(self, x)
        if self.mode == "max":
            return self._pool(tf.pad(x, pads, constant_values=x.dtype.min), "MAX")
        total = self._pool(tf.pad(x, pads), "AVG")
        if self.padding == "valid":
            return total
        return total / self._pool(tf.pad(tf.ones_like(x[:1, :, :, :1]), pads), "AVG")

    def _pool(self, x: tf.Tensor, kind: str) -> tf.Tensor:
        return tf.nn.pool(x, self.pool_size, kind, padding="VALID", dilations=self.dilation_rate)

    def _margin(self, axis: int) -> int:
        """Pixels between the first tap and the last."""
        return self.dilation_rate[axis] * (self.pool_size[axis] - 1)

    def pads(self, axis: int, size: Any) -> tuple[Any, Any]:
        """Pixels put before and after a map of `size` pixels, along an axis (0 height, 1 width)."""
        if self.padding == "valid":
            return (0, 0)
        if self.padding != "same":
            return self.padding[axis]
        if self.source_strides is not None:
            kernel, stride = self.pool_size[axis], self.source_strides[axis]
            return aligned_pads(size, kernel, stride, self.dilation_rate[axis])
        margin = self._margin(axis)
        return (margin // 2, margin - margin // 2)

    def get_config(self) -> dict[str, Any]:
        names = ("pool_size", "mode", "dilation_rate", "padding", "source_strides")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
