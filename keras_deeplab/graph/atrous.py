"""Rewriting the output stride of a network: the algorithme a trous on a whole graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import keras

from keras_deeplab import layers
from keras_deeplab.graph.describe import Kind, kind, window
from keras_deeplab.graph.fine_padding import (
    NO_SHIFT,
    FinePadding,
    Phase,
    fine_padding,
    is_constant,
)
from keras_deeplab.graph.geometry import geometry, is_map_reshape
from keras_deeplab.graph.network import (
    Call,
    clone_operation,
    copy_weights,
    functional,
    like,
    trace,
    walk,
)

Pair = tuple[int, int]


def with_output_stride(
    model: keras.Model,
    output_stride: int,
    input_shape: tuple[int | None, int | None] | None = None,
) -> keras.Model:
    """Returns the same network with a finer last map, its weights copied.

    Every operation that would push the stride above `output_stride` loses its stride, and all
    kernels behind it are dilated instead, so that they keep meeting the same image pixels. The
    finer map holds the values of the coarse one and those in between: with removed stride `r`,
    `fine[:, p::r, q::r]` equals `coarse`, where `p` and `q` are the difference of the two offsets
    that `geometry` reports, divided by `output_stride`. The equality is exact where every removed
    stride divides its map; networks that pool globally inside (squeeze-and-excite) are exact but
    for the pooled statistics, which are taken over the finer map.

    Args:
        model: A functional Keras model or a built Sequential, channels last; classifiers should
            come without their dense top. It is not changed.
        output_stride: The largest stride wanted, one that occurs in the network.
        input_shape: (height, width) of the new network's images, None for any; by default as in
            `model`.

    Returns:
        A functional `keras.Model` with the same inputs, output structure and layer names. Nested
        models and `Sequential`s are dissolved into it.

    Raises:
        ValueError: If the network cannot have that output stride, holds a layer whose geometry is
            not known or that cannot work on a finer map, or shares a layer between two strides.
            The error names the layer and the reason.

    Example:

    >>> network = keras.applications.ResNet50(include_top=False, weights=None)
    >>> fine = keras_deeplab.graph.with_output_stride(network, 8)
    >>> fine(keras.ops.ones((1, 224, 224, 3))).shape
    TensorShape([1, 28, 28, 2048])

    Reference:
        [Chen et al., 2017, DeepLab](https://arxiv.org/abs/1606.00915), section 3.1 and figure 2;
        [Chen et al., 2017, DeepLabV3](https://arxiv.org/abs/1706.05587), section 3.2.
    """
    _check_stride(model, output_stride)
    try:
        return _Rewriter(output_stride, input_shape, centred=True).rewrite(model)
    except _PhaseConflict:
        # Branches that a network samples at different pixels meet. Kept centred they would not
        # meet again at the same pixels; started where the coarse operations start, they do.
        return _Rewriter(output_stride, input_shape, centred=False).rewrite(model)


def _check_stride(model: keras.Model, output_stride: int) -> None:
    strides = {stride for value in geometry(model).values() for stride in value.stride}
    possible = sorted(int(s) for s in strides - {None} if s == int(s) and s >= 1)
    if output_stride not in possible or isinstance(output_stride, bool):
        raise ValueError(
            f"`output_stride` must be one of the strides of the network '{model.name}', "
            f"{possible}, received {output_stride!r}."
        )


class _PhaseConflict(Exception):
    """Maps whose samples lie at different pixels are merged."""


@dataclass(frozen=True)
class _Map:
    """A tensor of the network under construction, and where the original's samples lie in it.

    Sample `i` of the original tensor is sample `rate * i + phase` of this one.
    """

    tensor: keras.KerasTensor
    stride: tuple[Any, Any] | None  # None for a tensor that is no map
    rate: Pair = (1, 1)
    phase: tuple[Phase, Phase] = (NO_SHIFT, NO_SHIFT)
    # Padding that waits for its consumer, in pixels of the original map.
    pads: tuple[Pair, Pair] | None = None
    pad_call: Call | None = None

    @property
    def is_fine(self) -> bool:
        return self.rate != (1, 1)


@dataclass
class _Rewriter:
    """Builds the finer network while walking the original."""

    cap: int
    input_shape: tuple[int | None, int | None] | None
    centred: bool
    clones: dict[int, tuple[Any, Any]] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    settled: dict[tuple[int, str], keras.KerasTensor] = field(default_factory=dict)

    def rewrite(self, model: keras.Model) -> keras.Model:
        network = functional(model)
        inputs = [self.input(x) for x in network.inputs]
        self.names.update(x.name for x in inputs)
        starts = [_Map(x, (1, 1) if len(x.shape) == 4 else None) for x in inputs]
        outputs = [self.settle(value).tensor for value in walk(network, starts, self.visit)]
        result = like(network, inputs, outputs)
        for old, new in self.clones.values():
            copy_weights(old, new)
        return result

    def input(self, x: keras.KerasTensor) -> keras.KerasTensor:
        shape = x.shape
        if self.input_shape is not None and len(shape) == 4:
            shape = (shape[0], *self.input_shape, shape[3])
        return keras.Input(batch_shape=shape, dtype=x.dtype, name=x.name)

    def visit(self, call: Call, *args: Any, **kwargs: Any) -> Any:
        how = kind(call.operation, call.path)
        maps = [v for v in keras.tree.flatten((args, kwargs)) if isinstance(v, _Map)]
        if how is Kind.WINDOW and maps[0].stride:
            return self.window(call, maps[0])
        if (
            how is Kind.PAD
            and maps[0].stride
            and isinstance(call.operation, keras.layers.ZeroPadding2D)
        ):
            return replace(self.settle(maps[0]), pads=call.operation.padding, pad_call=call)
        args, kwargs = keras.tree.map_structure(
            lambda v: self.settle(v) if isinstance(v, _Map) else v, (args, kwargs)
        )
        maps = [v for v in keras.tree.flatten((args, kwargs)) if isinstance(v, _Map)]
        state, changes = self.plain(call, how, maps)
        tensors, named = keras.tree.map_structure(
            lambda v: v.tensor if isinstance(v, _Map) else v, (args, kwargs)
        )
        output = self.clone(call, **changes)(*tensors, **named)
        return keras.tree.map_structure(lambda x: replace(state, tensor=x), output)

    def plain(self, call: Call, how: Kind, maps: list[_Map]) -> tuple[_Map, dict[str, Any]]:
        """State and changed settings of everything but sliding kernels and padding."""
        if how is Kind.POINTWISE:
            return self.merged(call, maps), {}
        if how is Kind.RESIZE_LIKE:
            return maps[1], {}
        source = maps[0]
        if source.stride is None or how is Kind.STATISTICS or is_map_reshape(call):
            return source, {}
        if how is Kind.COMPOSITE:
            return self.composite(call, source)
        if how is Kind.CROP:
            crops = tuple(
                tuple(rate * number for number in pair)
                for rate, pair in zip(source.rate, call.operation.cropping, strict=True)
            )
            return source, {"cropping": crops}
        if how is Kind.GLOBAL and isinstance(
            call.operation, keras.layers.Flatten | keras.layers.Reshape
        ):
            self.refuse_fine(call, source, "would receive a map of another size")
        if how is Kind.GLOBAL:
            return _Map(source.tensor, None), {}
        self.refuse_fine(call, source, "resizes a map that becomes finer: it cannot stay exact")
        if how is Kind.RESIZE_TO:
            raise ValueError(
                f"The layer '{call.path}' resizes to a fixed size: behind it the stride against the "
                "image depends on the image."
            )
        factor = {Kind.UPSAMPLE: "size", Kind.TRANSPOSED: "strides"}.get(how)
        if factor is None:
            return source, {}
        factors = getattr(call.operation, factor)
        stride = tuple(old / by for old, by in zip(source.stride, factors, strict=True))
        return replace(source, stride=stride), {}

    def refuse_fine(self, call: Call, source: _Map, reason: str) -> None:
        if source.is_fine:
            raise ValueError(
                f"The layer '{call.path}' ({type(call.operation).__name__}) {reason}. Give the "
                f"network without it for output stride {self.cap}."
            )

    def merged(self, call: Call, maps: Sequence[_Map]) -> _Map:
        found = [value for value in maps if value.stride is not None]
        if not found:
            return maps[0]
        if len({(value.stride, value.rate) for value in found}) > 1:
            listed = " and ".join(sorted({str(value.stride) for value in found}))
            raise ValueError(
                f"The layer '{call.path}' merges maps that differ at output stride {self.cap}: "
                f"their strides become {listed}."
            )
        if len({value.phase for value in found}) > 1:
            raise _PhaseConflict(call.path)
        return found[0]

    def composite(self, call: Call, source: _Map) -> tuple[_Map, dict[str, Any]]:
        inner = geometry(trace(call.operation, call.inputs)).output.stride
        strides = (1, 1) if None in inner else tuple(int(stride) for stride in inner)
        lost = self.lost(call, source, strides)
        if not any(lost) and not source.is_fine:
            return self.strided(source, strides, (False, False)), {}
        changes = call.operation.dilated_config(source.rate)
        changes.pop("name")
        return self.strided(source, strides, lost), changes

    def lost(self, call: Call, source: _Map, strides: Pair) -> tuple[bool, bool]:
        """Along which axes an operation must give up its stride."""
        lost = tuple(
            own > 1 and (stride * own > self.cap or rate > 1)
            for own, stride, rate in zip(strides, source.stride, source.rate, strict=True)
        )
        kept = any(own > 1 and not gone for own, gone in zip(strides, lost, strict=True))
        if kept and (any(lost) or source.is_fine):
            raise ValueError(
                f"The layer '{call.path}' would keep a stride along one axis and be dilated along "
                f"the other at output stride {self.cap}; its strides are {strides}."
            )
        return lost

    def strided(self, source: _Map, strides: Pair, lost: tuple[bool, bool]) -> _Map:
        """The state behind an operation with strides."""
        stride, rate = zip(
            *(
                (old, r * own) if gone else (old * own, r)
                for old, own, r, gone in zip(source.stride, strides, source.rate, lost, strict=True)
            ),
            strict=True,
        )
        return replace(source, stride=stride, rate=rate, pads=None, pad_call=None)

    def window(self, call: Call, source: _Map) -> _Map:
        shape = window(call.operation)
        lost = self.lost(call, source, shape.strides)
        waiting = source.pads if any(lost) and shape.padding == "valid" else None
        if waiting is None:
            source = self.settle(source)
        if not any(lost) and not source.is_fine:
            output = self.clone(call)(source.tensor)
            return replace(self.strided(source, shape.strides, lost), tensor=output)
        padding = tuple(
            fine_padding(
                shape,
                axis,
                rate=source.rate[axis],
                lost=lost[axis],
                outer=None if waiting is None else waiting[axis],
                centred=self.centred,
            )
            for axis in (0, 1)
        )
        state = self.strided(source, shape.strides, lost)
        phase = tuple(old + p.shift for old, p in zip(source.phase, padding, strict=True))
        build = self.pooling if is_pooling(call.operation) else self.convolution
        return replace(state, tensor=build(call, source, padding), phase=phase)

    def convolution(
        self, call: Call, source: _Map, padding: Sequence[FinePadding]
    ) -> keras.KerasTensor:
        shape, x = window(call.operation), source.tensor
        dilation = tuple(
            own * rate if kernel > 1 else 1
            for own, rate, kernel in zip(shape.dilation, source.rate, shape.kernel, strict=True)
        )
        how = "same" if all(p.is_same for p in padding) else "valid"
        if how == "valid" and not is_constant(padding):
            extent = (shape.extent(0), shape.extent(1))
            name = self.name(f"{call.operation.name}_pad")
            x = layers.AtrousPadding2D(extent, shape.strides, source.rate, name=name)(x)
        elif how == "valid":
            x = self.zeros(call, source, padding)
        clone = self.clone(call, strides=(1, 1), dilation_rate=dilation, padding=how)
        return clone(x)

    def pooling(
        self, call: Call, source: _Map, padding: Sequence[FinePadding]
    ) -> keras.KerasTensor:
        operation, shape, x = call.operation, window(call.operation), source.tensor
        if shape.kernel == (1, 1) and source.pads is None:
            return self.replaced(call, keras.layers.Identity)(x)
        how: Any = tuple((p.begin, p.end) for p in padding)
        if source.pads is not None:  # zeros of the network's own, which take part in the pooling
            x, how = self.zeros(call, source, padding), "valid"
        elif not is_constant(padding):
            how = "same"
        average = isinstance(operation, keras.layers.AveragePooling2D) or (
            getattr(operation, "mode", None) == "average"
        )
        dilation = tuple(a * b for a, b in zip(shape.dilation, source.rate, strict=True))
        return self.replaced(
            call,
            layers.AtrousPooling2D,
            pool_size=shape.kernel,
            mode="average" if average else "max",
            dilation_rate=dilation,
            padding=how,
            source_strides=None if is_constant(padding) else shape.strides,
        )(x)

    def zeros(self, call: Call, source: _Map, padding: Sequence[FinePadding]) -> keras.KerasTensor:
        pads = tuple((p.begin, p.end) for p in padding)
        if not any(map(any, pads)):
            return source.tensor
        base = call.operation if source.pad_call is None else source.pad_call.operation
        name = base.name if source.pad_call is not None else f"{base.name}_pad"
        return keras.layers.ZeroPadding2D(pads, name=self.name(name))(source.tensor)

    def settle(self, source: _Map) -> _Map:
        """Applies padding that still waits."""
        if source.pads is None:
            return source
        key = (id(source.tensor), source.pad_call.path)
        if key not in self.settled:
            scaled = tuple(
                FinePadding(rate * begin, rate * end)
                for rate, (begin, end) in zip(source.rate, source.pads, strict=True)
            )
            self.settled[key] = self.zeros(source.pad_call, source, scaled)
        return replace(source, tensor=self.settled[key], pads=None, pad_call=None)

    def name(self, wanted: str) -> str:
        name, count = wanted, 1
        while name in self.names:
            name, count = f"{wanted}_{count}", count + 1
        self.names.add(name)
        return name

    def clone(self, call: Call, **changes: Any) -> Any:
        """The operation's counterpart: one for all its uses, which must need the same changes."""
        return self._counterpart(
            call, changes, lambda name: clone_operation(call.operation, name, **changes)
        )

    def replaced(self, call: Call, layer_class: type, **settings: Any) -> Any:
        """A layer of another class in the place of an operation without weights."""
        dtype = call.operation.dtype_policy
        return self._counterpart(
            call, settings, lambda name: layer_class(name=name, dtype=dtype, **settings)
        )

    def _counterpart(self, call: Call, settings: dict[str, Any], build: Any) -> Any:
        known = self.clones.get(id(call.operation))
        if known is None:
            clone = build(self.name(call.operation.name))
            clone.rewritten_with = settings
            self.clones[id(call.operation)] = (call.operation, clone)
            return clone
        if known[1].rewritten_with != settings:
            raise ValueError(
                f"The layer '{call.path}' is used at two strides and would need two different "
                f"dilations at output stride {self.cap}: shared layers must stay at one stride."
            )
        return known[1]


def is_pooling(operation: Any) -> bool:
    """Tells poolings from convolutions."""
    return isinstance(
        operation,
        keras.layers.MaxPooling2D | keras.layers.AveragePooling2D | layers.AtrousPooling2D,
    )
