"""All formulations of a dilated convolution: forward, and with both gradients."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import tensorflow as tf

from keras_deeplab.layers import dilated_conv

KERNEL = 3


class Map(NamedTuple):
    """A feature map and the convolution on it; without filters a depthwise one."""

    batch: int
    side: int
    channels: int
    filters: int | None
    rate: int


# The maps of ASPP at output strides 8 and 16, of the dilated blocks and of MobileNetV2.
MAPS = (
    Map(1, 65, 2048, 256, 12),
    Map(1, 65, 2048, 256, 36),
    Map(4, 33, 2048, 256, 18),
    Map(1, 65, 512, 512, 4),
    Map(1, 65, 2048, 21, 24),
    Map(4, 33, 2048, None, 6),
    Map(4, 33, 2048, None, 18),
    Map(4, 33, 960, None, 2),
)


def _keras(x: tf.Tensor, kernel: tf.Tensor, rate: Any, padding: str) -> tf.Tensor:
    return tf.nn.convolution(x, kernel, 1, padding.upper(), dilations=rate)


DENSE = {
    "Keras": _keras,
    "native": dilated_conv.native,
    "taps": dilated_conv.taps,
    "chosen": dilated_conv.convolution,
}
DEPTHWISE = {
    "Keras": dilated_conv.by_batches,
    "native": dilated_conv.native_depthwise,
    "chosen": dilated_conv.depthwise,
}
COLUMNS = ("Keras", "native", "taps", "chosen")


def cells(each: dict[str, Any]) -> list[str]:
    """Returns map, channels and rate as they stand in a table."""
    side, channels, filters = each["side"], each["channels"], each["filters"]
    kind = "depthwise" if filters is None else f"to {filters}"
    return [f"{each['batch']} x {side}x{side}", f"{channels} {kind}", str(each["rate"])]


def measure(dtype: str, rounds: int) -> list[dict[str, Any]]:
    """Returns for each map the median seconds of each formulation, timed in turn."""
    return [_measured(each, dtype, rounds) for each in MAPS]


def _measured(each: Map, dtype: str, rounds: int) -> dict[str, Any]:
    kernel_shape = (KERNEL, KERNEL, each.channels, each.filters or 1)
    shape = (each.batch, each.side, each.side)
    x = tf.cast(tf.random.normal((*shape, each.channels)), dtype)
    kernel = tf.cast(tf.random.normal(kernel_shape), dtype)
    upstream = tf.cast(tf.random.normal((*shape, each.filters or each.channels)), dtype)
    functions: dict[str, list[Callable[[], Any]]] = {}
    for name, formulation in (DEPTHWISE if each.filters is None else DENSE).items():
        forward, training = _functions(formulation, each.rate)
        try:
            functions[name] = [partial(forward.get_concrete_function(x, kernel), x, kernel)]
            functions[name][0]()
        except tf.errors.OpError:
            del functions[name]  # a processor without this operation
            continue
        if formulation is dilated_conv.native_depthwise:  # whose gradients are wrong
            continue
        with contextlib.suppress(tf.errors.OpError):  # a processor without its gradients
            concrete = training.get_concrete_function(x, kernel, upstream)
            concrete(x, kernel, upstream)
            functions[name].append(partial(concrete, x, kernel, upstream))
    seconds = {name: [[] for _ in both] for name, both in functions.items()}
    for _ in range(rounds):
        for name, both in functions.items():
            for function, measured in zip(both, seconds[name], strict=True):
                begin = time.perf_counter()
                tf.nest.map_structure(lambda tensor: tensor[0, 0, 0, 0].numpy(), function())
                measured.append(time.perf_counter() - begin)
    medians = {name: list(map(statistics.median, both)) for name, both in seconds.items()}
    return {"map": each._asdict(), "dtype": dtype, "seconds": medians}


def _functions(
    formulation: Callable[..., tf.Tensor], rate: int
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def forward(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        with dilated_conv.inference_graph("here"):
            return formulation(x, kernel, (rate, rate), "same")

    def training(x: tf.Tensor, kernel: tf.Tensor, upstream: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            tape.watch([x, kernel])
            outputs = formulation(x, kernel, (rate, rate), "same")
        return tape.gradient(outputs, [x, kernel], upstream)

    return tf.function(forward, autograph=False), tf.function(training, autograph=False)
