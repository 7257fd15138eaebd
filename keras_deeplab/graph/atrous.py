"""Rewriting the output stride of a network: the algorithme a trous on a whole graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import keras

from keras_deeplab.graph.counterparts import Counterparts
from keras_deeplab.graph.describe import Kind, kind, window
from keras_deeplab.graph.fine_map import FineMap, lost_strides
from keras_deeplab.graph.fine_padding import FinePadding
from keras_deeplab.graph.geometry import geometry, is_map_reshape
from keras_deeplab.graph.network import Call, functional, like, trace, walk
from keras_deeplab.graph.sliding import dilated, padded_with_zeros


def with_output_stride(
    model: keras.Model,
    output_stride: int,
    input_shape: tuple[int | None, int | None] | None = None,
    *,
    own_batch_norms: bool = False,
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
        own_batch_norms: Whether Keras' batch norms become `keras_deeplab.layers.BatchNormalization`
            with their weights and results, which trains faster, as in the package's models.

    Returns:
        A functional `keras.Model` with the same inputs, output structure and layer names. Nested
        models and `Sequential`s are dissolved into it.

    Raises:
        ValueError: If the network cannot have that output stride, holds a layer whose geometry is
            not known or that cannot work on a finer map, shares a layer between two strides, or
            has a fixed size that is too small for it. The error names the layer and the reason.

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

    def rewritten(*, centred: bool) -> keras.Model:
        counterparts = Counterparts(own_batch_norms=own_batch_norms)
        return _Rewriter(output_stride, input_shape, counterparts, centred=centred).rewrite(model)

    try:
        fine = rewritten(centred=True)
    except _PhaseConflict:
        # Branches that a network samples at different pixels meet. Kept centred they would not
        # meet again at the same pixels; started where the coarse operations start, they do.
        fine = rewritten(centred=False)
    geometry(fine)  # a fixed size that is too small would run, and pool padding alone
    return fine


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


class _Rewriter:
    """Builds the finer network while walking the original."""

    def __init__(
        self,
        cap: int,
        input_shape: tuple[int | None, int | None] | None,
        counterparts: Counterparts,
        *,
        centred: bool,
    ) -> None:
        self.cap = cap
        self.input_shape = input_shape
        self.centred = centred
        self.counterparts = counterparts
        self.settled: dict[tuple[int, str], keras.KerasTensor] = {}

    def rewrite(self, model: keras.Model) -> keras.Model:
        network = functional(model)
        inputs = [self.input(x) for x in network.inputs]
        starts = [FineMap(x, (1, 1) if len(x.shape) == 4 else None) for x in inputs]
        outputs = [self.settle(value).tensor for value in walk(network, starts, self.visit)]
        result = like(network, inputs, outputs)
        self.counterparts.copy_weights()
        return result

    def input(self, x: keras.KerasTensor) -> keras.KerasTensor:
        shape = x.shape
        if self.input_shape is not None and len(shape) == 4:
            shape = (shape[0], *self.input_shape, shape[3])
        return keras.Input(batch_shape=shape, dtype=x.dtype, name=self.counterparts.name(x.name))

    def visit(self, call: Call, *args: Any, **kwargs: Any) -> Any:
        how, maps = kind(call.operation, call.path), _maps(args, kwargs)
        if maps[0].stride is not None:
            if how is Kind.WINDOW:
                return self.window(call, maps[0])
            if how is Kind.PAD and isinstance(call.operation, keras.layers.ZeroPadding2D):
                source = self.settle(maps[0])
                return replace(source, pads=call.operation.padding, pad_call=call)
        args, kwargs = _replaced(self.settle, args, kwargs)
        state, changes = self.plain(call, how, _maps(args, kwargs))
        args, kwargs = _replaced(lambda value: value.tensor, args, kwargs)
        output = self.counterparts.clone(call, **changes)(*args, **kwargs)
        return keras.tree.map_structure(lambda x: replace(state, tensor=x), output)

    def window(self, call: Call, source: FineMap) -> FineMap:
        shape = window(call.operation)
        lost = lost_strides(call, source, shape.strides, self.cap)
        if not any(lost) or shape.padding != "valid":  # else the kernel takes waiting padding over
            source = self.settle(source)
        if any(lost) or source.is_fine:
            return dilated(call, source, lost, self.counterparts, centred=self.centred)
        output = self.counterparts.clone(call)(source.tensor)
        return replace(source.behind(shape.strides, lost), tensor=output)

    def plain(
        self, call: Call, how: Kind, maps: Sequence[FineMap]
    ) -> tuple[FineMap, dict[str, Any]]:
        """State and changed settings of everything but sliding kernels and zero padding."""
        source = maps[0]
        if how is Kind.POINTWISE:
            return self.merged(call, maps), {}
        if how is Kind.RESIZE_LIKE:
            return maps[1], {}
        if source.stride is None or how is Kind.STATISTICS or is_map_reshape(call):
            return source, {}
        if how is Kind.COMPOSITE:
            return self.composite(call, source)
        if how is Kind.CROP:
            return source, {"cropping": _scaled(call.operation.cropping, source)}
        if how is Kind.GLOBAL:
            if isinstance(call.operation, keras.layers.Flatten | keras.layers.Reshape):
                self.refuse_fine(call, source, "would receive a map of another size")
            return FineMap(source.tensor, None), {}
        return self.resized(call, how, source), {}

    def resized(self, call: Call, how: Kind, source: FineMap) -> FineMap:
        self.refuse_fine(call, source, "resizes a map that becomes finer: it cannot stay exact")
        if how is Kind.RESIZE_TO:
            raise ValueError(
                f"The layer '{call.path}' resizes to a fixed size: behind it the stride against "
                "the image depends on the image."
            )
        factors = {
            Kind.UPSAMPLE: lambda: call.operation.size,
            Kind.TRANSPOSED: lambda: call.operation.strides,
        }.get(how, lambda: (1, 1))()
        stride = tuple(old / by for old, by in zip(source.stride, factors, strict=True))
        return replace(source, stride=stride)

    def refuse_fine(self, call: Call, source: FineMap, reason: str) -> None:
        if source.is_fine:
            raise ValueError(
                f"The layer '{call.path}' ({type(call.operation).__name__}) {reason}. Give the "
                f"network without it for output stride {self.cap}."
            )

    def merged(self, call: Call, maps: Sequence[FineMap]) -> FineMap:
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

    def composite(self, call: Call, source: FineMap) -> tuple[FineMap, dict[str, Any]]:
        inner = geometry(trace(call.operation, call.inputs)).output.stride
        strides = (1, 1) if None in inner else tuple(int(stride) for stride in inner)
        lost = lost_strides(call, source, strides, self.cap)
        if not any(lost) and not source.is_fine:
            return source.behind(strides, lost), {}
        changes = call.operation.dilated_config(source.rate)
        changes.pop("name", None)
        return source.behind(strides, lost), changes

    def settle(self, source: FineMap) -> FineMap:
        """Applies padding that still waits."""
        if source.pads is None:
            return source
        key = (id(source.tensor), source.pad_call.path)
        if key not in self.settled:
            pads = [FinePadding(*pair) for pair in _scaled(source.pads, source)]
            self.settled[key] = padded_with_zeros(source.pad_call, source, pads, self.counterparts)
        return replace(source, tensor=self.settled[key], pads=None, pad_call=None)


def _maps(args: Any, kwargs: Any) -> list[FineMap]:
    return [value for value in keras.tree.flatten((args, kwargs)) if isinstance(value, FineMap)]


def _replaced(function: Any, args: Any, kwargs: Any) -> Any:
    """The arguments of a call with a function applied to every map among them."""
    return keras.tree.map_structure(
        lambda value: function(value) if isinstance(value, FineMap) else value, (args, kwargs)
    )


def _scaled(pads: Sequence[Sequence[int]], source: FineMap) -> tuple[tuple[int, ...], ...]:
    """Pixels of the original map, in pixels of the finer one."""
    return tuple(
        tuple(rate * number for number in pair)
        for rate, pair in zip(source.rate, pads, strict=True)
    )
