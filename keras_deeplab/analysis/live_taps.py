"""How many taps of an atrous kernel lie on the map, and how many in its padding."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np

from keras_deeplab.analysis.table import text_table
from keras_deeplab.graph.geometry import geometry, same_padding
from keras_deeplab.graph.kinds import Kind, kind, window
from keras_deeplab.validation import integer


@dataclass(frozen=True)
class LiveTaps:
    """The taps of an atrous convolution that lie on its map. Pairs are for (height, width).

    Attributes:
        name: Path of the layer.
        kernel: Taps of the kernel.
        rate: Atrous rate.
        map_size: Samples of the map.
        positions: A dict from a number of live taps to the share of the output positions that have
            as many: the curves of figure 4 in the DeepLabV3 paper.
    """

    name: str
    kernel: tuple[int, int]
    rate: tuple[int, int]
    map_size: tuple[int, int]
    positions: dict[int, float]

    @property
    def share(self) -> float:
        """The share of taps on the map, averaged over the output positions."""
        live = sum(count * share for count, share in self.positions.items())
        return live / (self.kernel[0] * self.kernel[1])


def live_taps(model: keras.Model, height: int, width: int) -> tuple[LiveTaps, ...]:
    """Counts for each atrous convolution the kernel taps that meet the map for an image size.

    Taps in the padding multiply zeros: a 3x3 kernel whose rate is as large as its map is a 1x1
    kernel.

    Args:
        model: A functional Keras model or a built Sequential, channels last.
        height, width: Size of the image in pixels.

    Returns:
        A `LiveTaps` for each convolution with a rate above 1, in the order of computation.

    Raises:
        ValueError: As of `graph.geometry`.

    Example:

    >>> model = keras_deeplab.DeepLabV3(21, "resnet50")
    >>> for taps in keras_deeplab.analysis.live_taps(model, 257, 257)[-3:]:
    ...     print(taps.rate, round(taps.share, 2))
    (6, 6) 0.58
    (12, 12) 0.28
    (18, 18) 0.11

    Reference:
        [Chen et al., 2017, DeepLabV3](https://arxiv.org/abs/1706.05587), section 3.3 and figure 4.
    """
    sizes = (integer("height", height), integer("width", width))
    found, padded = [], {}
    for call, inputs, output in geometry(model, *sizes).calls:
        how = kind(call.operation, call.path, call.rank)
        if how is Kind.PAD:  # the map inside, and the samples in front of it
            before, after = inputs[0].axes, output.axes
            padded[id(call.outputs[0])] = [
                (int((b.offset - a.offset) / b.stride), b.size)
                for b, a in zip(before, after, strict=True)
            ]
        is_convolution = how is Kind.WINDOW and hasattr(call.operation, "kernel_size")
        if not is_convolution or max(window(call.operation).dilation) == 1:
            continue
        shape, axes = window(call.operation), inputs[0].axes
        inside = padded.get(id(call.inputs[0]), [(0, axis.size) for axis in axes])
        counts = []
        for index, (axis, (front, samples)) in enumerate(zip(axes, inside, strict=True)):
            extent, stride = shape.extent(index), shape.strides[index]
            begin = same_padding(axis.size, extent, stride)[0] if shape.padding == "same" else 0
            first = np.arange(output.axes[index].size) * stride - begin - front
            taps = first[:, None] + np.arange(shape.kernel[index]) * shape.dilation[index]
            counts.append(Counter(((taps >= 0) & (taps < samples)).sum(1).tolist()))
        live: Counter[int] = Counter()
        for (down, rows), (along, columns) in itertools.product(*(c.items() for c in counts)):
            live[down * along] += rows * columns
        positions = {count: live[count] / live.total() for count in sorted(live)}
        size = tuple(samples for _, samples in inside)
        found.append(LiveTaps(call.path, shape.kernel, shape.dilation, size, positions))
    return tuple(found)


def taps_table(taps: Sequence[LiveTaps]) -> str:
    """Returns a row of text for each atrous convolution."""
    rows: list[tuple[object, ...]] = [("atrous convolution", "rate", "map", "live taps")]
    for one in taps:
        rows.append((one.name, max(one.rate), "{}x{}".format(*one.map_size), f"{one.share:.0%}"))
    return text_table(rows)
