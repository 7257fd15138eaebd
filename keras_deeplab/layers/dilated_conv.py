"""Keras' dilated convolutions, computed in faster ways.

Keras moves the map into `rate * rate` small batches and back. The alternatives here, chosen when a
layer is traced (measured by `python -m training.benchmark --parts convolution`, docs/speed.md):

- *native*: one TensorFlow operation with dilations. The fastest for float32, or near it.
- *taps*: a matrix product for each tap of the kernel, only where the shifted map meets the output.
  In half precision on a CPU at large rates, where some processors have no fast native operation.
- *native depthwise*: two to four times faster than Keras' at small rates, slower at large ones.

In training a convolution's gradient with respect to its kernel is a matrix product for each tap:
TensorFlow's own takes up to four times as long. That with respect to its input is TensorFlow's
where oneDNN has it, else the convolution with the mirrored kernel.
"""

from __future__ import annotations

import contextvars
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import keras
import tensorflow as tf
from keras import layers as kl
from keras import ops

LARGE_RATE = 6  # from which half precision uses taps
LARGE_DEPTHWISE_RATE = 9  # from which Keras' depthwise convolution is faster than the native one

Pair = tuple[int, int]
Formulation = Callable[..., tf.Tensor]
Target = Literal["here", "server", "converter"]
_target: contextvars.ContextVar[Target | None] = contextvars.ContextVar("target", default=None)


@contextmanager
def inference_graph(target: Target) -> Iterator[None]:
    """Traces layers inside without gradients of their own, for the place where they will run.

    `"here"` is this machine; `"server"` any machine with TensorFlow, where native depthwise
    operations may be missing; `"converter"` another runtime's converter, which must find one native
    operation for each convolution.
    """
    token = _target.set(target)
    try:
        yield
    finally:
        _target.reset(token)


@keras.saving.register_keras_serializable(package="keras_deeplab")
class Conv2D(kl.Conv2D):
    """`keras.layers.Conv2D` with its arguments, weights and results, faster where it is dilated.

    Example:

    >>> layer = keras_deeplab.layers.Conv2D(8, 3, dilation_rate=12, padding="same")
    >>> layer(keras.random.normal((1, 33, 33, 4))).shape
    TensorShape([1, 33, 33, 8])
    """

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        if not _is_dilated(self) or self.groups > 1:
            return super().convolution_op(inputs, kernel)
        return convolution(*_tensors(inputs, kernel), self.dilation_rate, self.padding)


@keras.saving.register_keras_serializable(package="keras_deeplab")
class DepthwiseConv2D(kl.DepthwiseConv2D):
    """`keras.layers.DepthwiseConv2D` with its arguments and results, faster at small rates.

    Example:

    >>> layer = keras_deeplab.layers.DepthwiseConv2D(3, dilation_rate=2, padding="same")
    >>> layer(keras.random.normal((1, 33, 33, 4))).shape
    TensorShape([1, 33, 33, 4])
    """

    def call(self, inputs: Any) -> Any:
        if not _is_dilated(self):
            return super().call(inputs)
        x, kernel = _tensors(inputs, self.kernel)
        x = depthwise(x, kernel, self.dilation_rate, self.padding)
        return _with_bias_and_activation(self, x)


@keras.saving.register_keras_serializable(package="keras_deeplab")
class SeparableConv2D(kl.SeparableConv2D):
    """`keras.layers.SeparableConv2D` with its arguments and results, faster at small rates.

    Example:

    >>> layer = keras_deeplab.layers.SeparableConv2D(8, 3, dilation_rate=2, padding="same")
    >>> layer(keras.random.normal((1, 33, 33, 4))).shape
    TensorShape([1, 33, 33, 8])
    """

    def call(self, inputs: Any) -> Any:
        if not _is_dilated(self):
            return super().call(inputs)
        x, kernel = _tensors(inputs, self.depthwise_kernel)
        x = depthwise(x, kernel, self.dilation_rate, self.padding)
        x = ops.conv(x, self.pointwise_kernel, data_format="channels_last")
        return _with_bias_and_activation(self, x)


# By Keras' layer the one that takes its place where a network is dilated. They have the same
# names, of which Keras makes the paths of weights in files.
DILATED = {
    kl.Conv2D: Conv2D,
    kl.DepthwiseConv2D: DepthwiseConv2D,
    kl.SeparableConv2D: SeparableConv2D,
}


def _is_dilated(layer: Any) -> bool:
    dilated = max(layer.dilation_rate) > 1 and max(layer.strides) == 1
    return dilated and layer.data_format == "channels_last"


def _tensors(inputs: Any, kernel: Any) -> tuple[tf.Tensor, tf.Tensor]:
    inputs = tf.convert_to_tensor(ops.convert_to_tensor(inputs))
    # The kernel as an integer would be zeros: TensorFlow raises an error, as in Keras' layers.
    kernel = ops.convert_to_tensor(kernel, dtype=inputs.dtype if inputs.dtype.is_floating else None)
    return inputs, tf.convert_to_tensor(kernel)  # Keras returns the variable itself


def _with_bias_and_activation(layer: Any, x: tf.Tensor) -> tf.Tensor:
    if layer.use_bias:
        x = ops.add(x, ops.convert_to_tensor(layer.bias, dtype=x.dtype))
    return x if layer.activation is None else layer.activation(x)


def convolution(x: tf.Tensor, kernel: tf.Tensor, rate: Pair, padding: str) -> tf.Tensor:
    """A convolution at stride 1 in the fastest formulation."""
    is_half = x.dtype in (tf.bfloat16, tf.float16)
    by_taps = is_half and max(rate) >= LARGE_RATE and _only_cpu() and _target.get() != "converter"
    forward = taps if by_taps else native
    if _target.get() is not None or not _only_cpu():
        return forward(x, kernel, rate, padding)
    return _trained(forward, _kernel_gradient, rate, padding)(x, kernel)


def depthwise(x: tf.Tensor, kernel: tf.Tensor, rate: Pair, padding: str) -> tf.Tensor:
    """A depthwise convolution at stride 1 in the fastest formulation."""
    target, single = _target.get(), kernel.shape[-1] == 1
    small = max(rate) < LARGE_DEPTHWISE_RATE
    fast = small and single and target != "server" and _runs(native_depthwise, x.dtype)
    forward = native_depthwise if fast or target == "converter" else by_batches
    if target is not None or not single:
        return forward(x, kernel, rate, padding)
    # TensorFlow's gradient of the native operation ignores the dilations, and that of Keras' keeps
    # the small batches, which are several times as large as the map at large rates.
    return _trained(forward, _depthwise_kernel_gradient, rate, padding)(x, kernel)


@functools.cache
def _trained(
    forward: Formulation, gradient: Formulation, rate: Pair, padding: str, orders: int = 2
) -> Formulation:
    """A formulation with the gradients of this file, also of gradients, up to an order.

    A function that is traced once for each shape: TensorFlow keeps the graph of every custom
    gradient that it traces for ever. The orders end, as a SavedModel contains the gradients of
    its functions, and one whose gradient calls it cannot be loaded.
    """

    def again(x: tf.Tensor, kernel: tf.Tensor, rate: Pair, padding: str) -> tf.Tensor:
        if orders > 1:
            return _trained(forward, gradient, rate, padding, orders - 1)(x, kernel)
        if gradient is _depthwise_kernel_gradient:
            return by_batches(x, kernel, rate, padding)
        return tf.nn.convolution(x, kernel, padding=padding.upper(), dilations=rate)

    @tf.custom_gradient
    def convolved(x: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Callable[..., Any]]:
        def gradients(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            of_kernel = gradient(x, kernel, upstream, rate, padding)
            if forward is native and _runs(_native_input_gradient, x.dtype):
                return _native_input_gradient(
                    upstream, kernel, rate, padding, tf.shape(x)
                ), of_kernel
            mirrored = kernel
            if gradient is _kernel_gradient:
                mirrored = tf.transpose(kernel, (0, 1, 3, 2))
            return _mirrored(again, upstream, mirrored, rate, padding), of_kernel

        return forward(x, kernel, rate, padding), gradients

    compiled = tf.function(convolved, autograph=False)
    return lambda x, kernel: (convolved if tf.executing_eagerly() else compiled)(x, kernel)


def native(x: tf.Tensor, kernel: tf.Tensor, rate: Pair, padding: str) -> tf.Tensor:
    """A convolution as one operation with dilations."""
    return tf.nn.conv2d(x, kernel, 1, padding.upper(), dilations=rate)


def native_depthwise(x: tf.Tensor, kernel: tf.Tensor, rate: Pair, padding: str) -> tf.Tensor:
    """A depthwise convolution as one operation with dilations, which only oneDNN has."""
    return tf.raw_ops.DepthwiseConv2dNative(
        input=x, filter=kernel, strides=[1] * 4, padding=padding.upper(), dilations=[1, *rate, 1]
    )


def by_batches(x: tf.Tensor, kernel: tf.Tensor, rate: Pair, padding: str) -> tf.Tensor:
    """A depthwise convolution as Keras computes it."""
    return tf.nn.depthwise_conv2d(x, kernel, [1] * 4, padding.upper(), dilations=rate)


def taps(x: tf.Tensor, kernel: tf.Tensor, rate: Pair, padding: str) -> tf.Tensor:
    """A convolution as the sum of one matrix product for each tap that meets the map."""
    (rows, height), (columns, width) = _meetings(x, kernel.shape[:2], rate, padding)
    total = None
    for i, (top, bottom, dy) in enumerate(rows):
        for j, (left, right, dx) in enumerate(columns):
            if _is_empty(top, bottom) or _is_empty(left, right):
                continue
            with _after(total):
                part = x[:, top + dy : bottom + dy, left + dx : right + dx]
            part = tf.tensordot(part, kernel[i, j], 1)
            margins = [[0, 0], [top, height - bottom], [left, width - right], [0, 0]]
            part = tf.pad(part, margins)
            total = part if total is None else total + part
    return native(x, kernel, rate, padding) if total is None else total  # no tap meets the map


def _kernel_gradient(
    x: tf.Tensor, kernel: tf.Tensor, upstream: tf.Tensor, rate: Pair, padding: str
) -> tf.Tensor:
    """The gradient of a convolution with respect to its kernel, a matrix product for each tap."""
    size = kernel.shape[:2]
    (rows, _), (columns, _) = _meetings(x, size, rate, padding)
    channels, filters = x.shape[-1], upstream.shape[-1]
    products = []
    for top, bottom, dy in rows:
        for left, right, dx in columns:
            if _is_empty(top, bottom) or _is_empty(left, right):
                products.append(tf.zeros((filters, channels), x.dtype))
                continue
            with _after(products[-1] if products else None):
                read = x[:, top + dy : bottom + dy, left + dx : right + dx]
            written = upstream[:, top:bottom, left:right]
            read, written = tf.reshape(read, (-1, channels)), tf.reshape(written, (-1, filters))
            products.append(tf.matmul(written, read, transpose_a=True))
    stacked = tf.reshape(tf.stack(products), (*size, filters, channels))
    return tf.transpose(stacked, (0, 1, 3, 2))


def _depthwise_kernel_gradient(
    x: tf.Tensor, kernel: tf.Tensor, upstream: tf.Tensor, rate: Pair, padding: str
) -> tf.Tensor:
    """The gradient of a depthwise convolution with respect to its kernel, as Keras computes it."""
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        outputs = by_batches(x, kernel, rate, padding)
    return tape.gradient(outputs, kernel, upstream)


def _native_input_gradient(
    upstream: tf.Tensor,
    kernel: tf.Tensor,
    rate: Pair,
    padding: str,
    shape: tf.Tensor | tuple[int, ...] = (1, 3, 3, 1),
) -> tf.Tensor:
    """TensorFlow's gradient of `native` with respect to its input, which only oneDNN has."""
    return tf.raw_ops.Conv2DBackpropInput(
        input_sizes=shape,
        filter=kernel,
        out_backprop=upstream,
        strides=[1] * 4,
        padding=padding.upper(),
        dilations=[1, *rate, 1],
    )


def _mirrored(
    forward: Formulation, x: tf.Tensor, kernel: tf.Tensor, rate: Pair, padding: str
) -> tf.Tensor:
    """The convolution with the mirrored kernel that gives the input's size back."""
    kernel = tf.reverse(kernel, (0, 1))
    if padding == "same" and kernel.shape[0] % 2 and kernel.shape[1] % 2:
        return forward(x, kernel, rate, "same")
    totals = [r * (k - 1) for k, r in zip(kernel.shape[:2], rate, strict=True)]
    same = padding == "same"  # which pads the half of it, rounded down, in front
    margins = [[total - total // 2, total // 2] if same else [total, total] for total in totals]
    return forward(tf.pad(x, [[0, 0], *margins, [0, 0]]), kernel, rate, "valid")


def _meetings(x: tf.Tensor, size: Pair, rate: Pair, padding: str) -> list[tuple[list[Any], Any]]:
    """For each axis where each tap reads: (first output, end of outputs, shift), output size.

    Integers where the size of the map is known, else tensors.
    """
    found = []
    for axis, (k, r) in enumerate(zip(size, rate, strict=True), 1):
        known = x.shape[axis]
        length = tf.shape(x)[axis] if known is None else known
        least, most = (tf.minimum, tf.maximum) if known is None else (min, max)
        margin = r * (k - 1)
        begin = margin // 2 if padding == "same" else 0
        outputs = length if padding == "same" else length - margin
        spans = []
        for shift in range(-begin, margin - begin + 1, r):
            first = least(most(0, -shift), outputs)
            spans.append((first, most(first, least(outputs, length - shift)), shift))
        found.append((spans, outputs))
    return found


def _after(tensor: tf.Tensor | None) -> Any:
    """A scope for what is computed after a tensor.

    The parts of a map for all taps at once would take several times its memory.
    """
    return tf.control_dependencies([] if tensor is None else [tensor])


def _is_empty(first: Any, end: Any) -> bool:
    """Whether a span of known size has no pixel; one of unknown size is computed in any case."""
    return isinstance(first, int) and isinstance(end, int) and first >= end


def is_graph_with_gradients() -> bool:
    """Whether gradients may be taken of what is traced here, outside of `inference_graph`."""
    return _target.get() is None


def is_onednn_graph() -> bool:
    """Whether the graph of a model that is built here is computed by oneDNN."""
    return is_graph_with_gradients() and _runs(native_depthwise, tf.float32)


@functools.cache
def _only_cpu() -> bool:
    """Whether there is no accelerator, whose libraries have all native operations."""
    return {device.device_type for device in tf.config.list_logical_devices()} == {"CPU"}


@functools.cache
def _runs(operation: Formulation, dtype: tf.DType) -> bool:
    """Whether a native operation can be dilated here: on a CPU only with oneDNN."""
    if not _only_cpu():
        return False
    try:
        with tf.init_scope():
            operation(tf.zeros((1, 3, 3, 1), dtype), tf.zeros((3, 3, 1, 1), dtype), (2, 2), "same")
    except tf.errors.OpError:
        return False
    return True
