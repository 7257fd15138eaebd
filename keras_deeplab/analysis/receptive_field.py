"""The theoretical receptive field of each stage of a network."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import keras

from keras_deeplab.analysis.table import text_table
from keras_deeplab.graph.geometry import TensorGeometry, geometry
from keras_deeplab.graph.kinds import Kind, kind, window
from keras_deeplab.graph.network import is_network, top_level_calls
from keras_deeplab.validation import error

# The block of a layer: `block_3` of `block_3_expand`, `conv4` of `conv4_block2_1_conv`. Layers with
# Keras' default names, as `conv2d` and `conv2d_4`, are stages of their own.
_BLOCK = re.compile(r"(?:.*_)?\w+[123]d(?:_\d+)?$|.*?\d+(_\d+$)?|_*[^_]+|.+")


@dataclass(frozen=True)
class Stage:
    """The last tensor of a stage. Every pair is for (height, width).

    Attributes:
        name: Name of the block or branch, as `"backbone/block1"` or `"aspp/atrous_0"`.
        stride: Image pixels from one sample to the next; None for a vector.
        receptive_field: Image pixels that a sample is computed from, by kernels.
        offset: Where the first sample's field is centred (0: the first pixel), None if that depends
            on an image size that was not given.
        rate: Largest atrous rate of the stage's kernels.
        whole_image: Whether a sample also depends on the whole image, by global pooling.
    """

    name: str
    stride: tuple[Any, Any]
    receptive_field: tuple[int | float, int | float]
    offset: tuple[float | None, float | None]
    rate: int
    whole_image: bool

    def box(self, sample: tuple[int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Returns the field of a sample on an image as `(top, left, bottom, right)`.

        Args:
            sample: Row and column of the sample.
            size: `(height, width)` of the image, which cuts the field.

        Returns:
            The first row and column, and those after the last.

        Raises:
            ValueError: If the stage has no map, or its offset is unknown.
        """
        if None in self.stride or None in self.offset:
            rule = "a map with a known offset"
            advice = "`receptive_field` needs the `height` and `width` of the image for it."
            raise error("stage", rule, self.name, advice)
        axes = zip(sample, self.stride, self.offset, self.receptive_field, size, strict=True)
        ends = []
        for place, stride, offset, field, side in axes:
            centre, reach = offset + place * stride, (field - 1) / 2
            ends.append(
                (max(math.floor(centre - reach), 0), min(math.ceil(centre + reach) + 1, side))
            )
        (top, bottom), (left, right) = ends
        return top, left, bottom, right


@dataclass(frozen=True)
class ReceptiveFields:
    """The stages of a network in the order of computation; `print` shows them as a table.

    Attributes:
        stages: The last one is the output, the first of several.
    """

    stages: tuple[Stage, ...]

    def __str__(self) -> str:
        """Returns a row for each stage."""
        rows: list[tuple[object, ...]] = [("stage", "stride", "receptive field", "centre", "rate")]
        for stage in self.stages:
            field = f"{_pair(stage.receptive_field)}{' + image' * stage.whole_image}"
            field = "image" if stage.stride[0] is None else field
            rows.append((stage.name, _pair(stage.stride), field, _pair(stage.offset), stage.rate))
        return text_table(rows)

    def to_dict(self) -> dict[str, Any]:
        """Returns a dict for `json.dump`."""
        return {"stages": [vars(stage) for stage in self.stages]}


def receptive_field(
    model: keras.Model, height: int | None = None, width: int | None = None
) -> ReceptiveFields:
    """Computes stride, receptive field and centre of each stage of a network.

    A stage is a block of layers, by their names, or a branch of a composite layer such as ASPP.
    `graph.geometry` has the same figures for every tensor.

    Args:
        model: A functional Keras model or a built Sequential, channels last.
        height, width: Size of the image in pixels, by default the model's own. Where neither is
            known, the centres that depend on them are None.

    Returns:
        A `ReceptiveFields`.

    Raises:
        ValueError: As of `graph.geometry`.

    Example:

    >>> network = keras.applications.VGG16(include_top=False, weights=None)
    >>> print(keras_deeplab.analysis.receptive_field(network))
    stage   stride  receptive field  centre  rate
    block1       2                6     0.5     1
    block2       4               16     1.5     1
    block3       8               44     3.5     1
    block4      16              100     7.5     1
    block5      32              212    15.5     1
    """
    found = geometry(model, height, width)
    networks = {call.path for call in top_level_calls(model) if is_network(call.operation)}
    stages: dict[str, Stage] = {}
    changing: set[str] = set()
    last = ""
    for call, inputs, output in found.calls:
        name = stage_name(call.path, networks)
        known = stages.pop(name, None)  # a stage has the place of its last layer
        rate = known.rate if known else 1
        how = kind(call.operation, call.path, call.rank)
        if how is Kind.WINDOW:
            rate = max(rate, *window(call.operation).dilation)
        if how is not Kind.POINTWISE or len(inputs) > 1:
            changing.add(name)
        stages[name] = _stage(name, output, rate)
        if output is found.outputs[0]:
            last = name
    if last:
        stages[last] = _stage(last, found.outputs[0], stages.pop(last).rate)
    # A stage of activations alone is left out, as is one that changes nothing.
    kept: list[Stage] = []
    for name, stage in stages.items():
        counts = name == last or (name in changing and max(stage.receptive_field) > 1)
        differs = not kept or _without_name(kept[-1]) != _without_name(stage)
        if counts and (differs or "/" in name):
            kept.append(stage)
    return ReceptiveFields(tuple(kept))


def stage_name(path: str, networks: set[str]) -> str:
    """The stage of a layer; `networks` are the paths of the nested models."""
    outer, *inner = path.split("/")
    if outer in networks:
        return f"{outer}/{_BLOCK.match(inner[0])[0]}"
    if len(inner) > 1:  # a branch of a composite layer
        return f"{outer}/{inner[0]}"
    return outer if inner else _BLOCK.match(outer)[0]


def _stage(name: str, value: TensorGeometry, rate: int) -> Stage:
    fields = tuple(int(a.field) if a.field.denominator == 1 else float(a.field) for a in value.axes)
    whole = any(axis.unbounded for axis in value.axes)
    return Stage(name, value.stride, fields, value.offset, rate, whole)


def _without_name(stage: Stage) -> tuple[object, ...]:
    return stage.stride, stage.receptive_field, stage.whole_image, stage.offset


def _pair(values: tuple[Any, Any]) -> str:
    height, width = ("-" if value is None else f"{round(value, 1):g}" for value in values)
    return height if height == width else f"{height}x{width}"
