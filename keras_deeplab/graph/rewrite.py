"""Rewriting the output stride of a network: the algorithme a trous on a whole graph."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
from keras import layers as kl

from keras_deeplab.graph.geometry import (
    Geometry,
    TensorGeometry,
    geometry,
    is_map_reshape,
    same_padding,
)
from keras_deeplab.graph.kinds import POOLINGS, Kind, Window, kind, window
from keras_deeplab.graph.network import (
    Call,
    all_layers,
    copy_weights,
    dtype_policy,
    forget_call,
    functional,
    is_network,
    layer_error,
    walk,
    without_initial_values,
)
from keras_deeplab.layers import (
    AtrousPadding2D,
    AtrousPooling2D,
    BatchNormalization,
    CompositeLayer,
)
from keras_deeplab.layers.dilated_conv import DILATED
from keras_deeplab.validation import error

Pair = tuple[int, int]
Pads = tuple[Pair | None, Pair | None]
Phase = Counter[Any]
_BY_SIZE = None  # in place of a pair: padding that depends on the size of the map


def with_output_stride(
    model: keras.Model,
    output_stride: int,
    input_shape: tuple[int | None, int | None] | None = None,
    *,
    own_batch_norms: bool = False,
    reuse_layers: bool = False,
) -> keras.Model:
    """Returns the same network with a denser last feature map, its weights copied.

    Every operation that would push the stride above `output_stride` loses its stride, and all
    kernels after it are dilated instead, so that they keep covering the same image pixels. The
    dense feature map holds the values of the coarse one and those in between: with removed stride
    `r`, `dense[:, p::r, q::r]` equals `coarse`, where `p` and `q` are the difference of the two
    offsets that `geometry` reports, divided by `output_stride`. The equality is exact where every
    removed stride divides its map, but for statistics of the whole map (squeeze-and-excite).

    Args:
        model: A functional Keras model or a built Sequential, channels last, without a dense top.
        output_stride: The largest stride of the result, one that occurs in the network.
        input_shape: (height, width) of the new network's images, None for any; by default as in
            `model`.
        own_batch_norms: Whether Keras' batch norms become `keras_deeplab.layers.BatchNormalization`
            with their weights and results, as in the package's models.
        reuse_layers: Whether the layers of `model` that keep their settings are taken over, from a
            model without shared layers. Only `geometry` may be called on it afterwards.

    Returns:
        A functional `keras.Model` with the same inputs, output structure and layer names; nested
        models are dissolved into it.

    Raises:
        ValueError: If the network cannot have that output stride, holds a layer whose geometry is
            not known or that cannot work on a denser map, shares a layer between two strides, or
            has a fixed size that is too small for it. The error names the layer and the reason.

    Example:

    >>> network = keras.applications.ResNet50(include_top=False, weights=None)
    >>> dense = keras_deeplab.graph.with_output_stride(network, 8)
    >>> dense(keras.ops.ones((1, 224, 224, 3))).shape
    TensorShape([1, 28, 28, 2048])

    Reference:
        [Chen et al., 2017, DeepLab](https://arxiv.org/abs/1606.00915), section 3.1 and figure 2;
        [Chen et al., 2017, DeepLabV3](https://arxiv.org/abs/1706.05587), section 3.2.
    """
    found = geometry(model)
    strides = {stride for value in found.values() for stride in value.stride}
    possible = sorted(int(s) for s in strides - {None} if s == int(s) and s >= 1)
    if output_stride not in possible or isinstance(output_stride, bool):
        rule = f"one of the strides of the network '{model.name}', {possible}"
        raise error("output_stride", rule, output_stride)

    def rewritten(centred: bool) -> keras.Model:
        rewriter = _Rewriter(output_stride, centred, own_batch_norms, reuse_layers)
        return rewriter.rewrite(model, found.inputs, input_shape)

    try:
        dense = rewritten(centred=True)
    except _PhaseConflict:
        # Two merged branches are sampled at different pixels. With padding that starts where the
        # coarse operations start, all samples agree.
        dense = rewritten(centred=False)
    geometry(dense)  # raises an error if the input size is fixed and too small
    return dense


class _PhaseConflict(Exception):
    """Maps whose samples lie at different pixels are merged."""


@dataclass(frozen=True)
class _Map:
    """A tensor of the new network, with the geometry of the original's.

    Sample `i` of the original is sample `rate * i + phase` of this one. A phase has "constant"
    samples and one (rate, extent, stride) for each "same" padding that depends on the image's size.
    `padding` is a zero padding still to be materialised: a kernel that loses its stride chooses its
    own, before any other operation it becomes a layer.
    """

    tensor: keras.KerasTensor
    geometry: TensorGeometry
    rate: Pair = (1, 1)
    phase: tuple[Phase, Phase] = (Counter(), Counter())
    padding: Call | None = None

    @property
    def is_map(self) -> bool:
        return None not in self.geometry.stride

    @property
    def is_dense(self) -> bool:
        return self.rate != (1, 1)

    def scaled(self, pads: Sequence[Pair]) -> tuple[Pair, ...]:
        """Pairs of pixels of the original map, in pixels of this one."""
        pairs = zip(self.rate, pads, strict=True)
        return tuple((rate * begin, rate * end) for rate, (begin, end) in pairs)


class _Rewriter:
    """Builds the denser network while walking the original, and copies its weights."""

    def __init__(
        self, output_stride: int, centred: bool, own_batch_norms: bool, reuse_layers: bool
    ) -> None:
        self.output_stride = output_stride
        self.centred = centred
        self.own_batch_norms = own_batch_norms
        self.reuse_layers = reuse_layers
        self.names: set[str] = set()
        # By the id of an operation: the operation, the layer made of it and the changed settings.
        self.made: dict[int, tuple[Any, Any, dict[str, Any]]] = {}
        self.padded: dict[tuple[int, str], keras.KerasTensor] = {}

    def rewrite(
        self,
        model: keras.Model,
        geometries: list[TensorGeometry],
        size: tuple[int | None, int | None] | None,
    ) -> keras.Model:
        network, maps = functional(model), []
        for x, value in zip(network.inputs, geometries, strict=True):
            is_resized = size is not None and len(x.shape) == 4
            shape = (x.shape[0], *size, x.shape[3]) if is_resized else x.shape
            name = self.name(x.name)
            if not self.reuse_layers or shape != x.shape:
                x = keras.Input(batch_shape=shape, dtype=x.dtype, name=name)
            maps.append(_Map(x, value))
        outputs = [self.materialised(value).tensor for value in walk(model, maps, self.visit)]
        for original, made, _ in self.made.values():
            if made is not original and isinstance(original, kl.Layer):
                copy_weights(original, made)
                if isinstance(original, CompositeLayer):
                    continue
                inside = zip(*(all_layers(x).values() for x in (original, made)), strict=True)
                for old, new in inside:  # of which a configuration of Keras says nothing
                    new.trainable = old.trainable
        inputs = keras.tree.pack_sequence_as(network.input, [value.tensor for value in maps])
        return keras.Model(
            inputs, keras.tree.pack_sequence_as(network.output, outputs), name=model.name
        )

    def name(self, wanted: str) -> str:
        """The wanted name, numbered if it is taken (as when nested models are dissolved)."""
        name, count = wanted, 1
        while name in self.names:
            name, count = f"{wanted}_{count}", count + 1
        self.names.add(name)
        return name

    def layer(self, call: Call, settings: dict[str, Any], layer_class: Any = None) -> Any:
        """The one layer for all uses of an operation: of another class if given, or its clone."""
        key = id(call.operation)
        if key not in self.made:
            new = self.new_layer(call.operation, settings, layer_class)
            self.made[key] = (call.operation, new, settings)
        _, made, made_with = self.made[key]
        if made_with != settings:
            detail = f"is used at two strides and would need both {made_with} and {settings}."
            raise layer_error("every shared layer at one stride", call.path, detail)
        return made

    def new_layer(self, operation: Any, settings: dict[str, Any], layer_class: Any) -> Any:
        name = self.name(operation.name)
        if layer_class is not None:
            return layer_class(name=name, dtype=operation.dtype_policy.name, **settings)
        cloned_class = type(operation)
        if self.own_batch_norms and cloned_class is kl.BatchNormalization:
            cloned_class = BatchNormalization
        if max(settings.get("dilation_rate", (1,))) > 1:
            cloned_class = DILATED.get(cloned_class, cloned_class)
        is_same = cloned_class is type(operation) and name == operation.name
        if self.reuse_layers and is_same and not settings:
            return operation
        config = {**operation.get_config(), **settings}
        if not isinstance(operation, kl.Layer):
            clone = cloned_class.from_config(config)
        else:
            config["name"] = name
            with dtype_policy(operation.dtype_policy):  # of layers that a user's layer makes
                clone = cloned_class.from_config(config)
        clone.name = name
        return clone

    def visit(self, call: Call, maps: list[_Map]) -> list[_Map]:
        if is_network(call.operation):
            return walk(call.operation, maps, self.visit, call.path + "/")
        how, source = kind(call.operation, call.path, call.rank), maps[0]
        (after, *_) = Geometry().visit(call, [value.geometry for value in maps])
        if source.is_map and how is Kind.WINDOW:
            return [self.rewrite_window(call, source, after)]
        if source.is_map and isinstance(call.operation, kl.ZeroPadding2D):
            return [replace(self.materialised(source), geometry=after, padding=call)]
        maps = [self.materialised(value) for value in maps]
        state, changes = self.state(call, how, maps, after)
        outputs = self.apply(self.layer(call, changes), call, [value.tensor for value in maps])
        return [replace(state, tensor=x, geometry=after) for x in outputs]

    def apply(self, layer: Any, call: Call, tensors: list[Any]) -> list[keras.KerasTensor]:
        """Calls a layer as in the original, with these tensors for the original's."""
        if layer is call.operation and all(map(operator.is_, tensors, call.inputs)):
            return list(call.outputs)  # nothing has changed up to here
        if self.reuse_layers:
            forget_call(call)
        known = {id(old): new for old, new in zip(call.inputs, tensors, strict=True)}
        args, kwargs = call.arguments.fill_in(known)
        with without_initial_values(layer):
            return keras.tree.flatten(layer(*args, **kwargs))

    def state(
        self, call: Call, how: Kind, maps: Sequence[_Map], after: TensorGeometry
    ) -> tuple[_Map, dict[str, Any]]:
        """Rate, phase and changed settings of all but sliding kernels and zero padding."""
        source = maps[0]
        if how is Kind.POINTWISE:
            return self.merged(call, maps), {}
        if how is Kind.RESIZE_LIKE:
            return maps[1], {}
        if not source.is_map or how is Kind.STATISTICS or is_map_reshape(call):
            return source, {}
        if how is Kind.COMPOSITE:
            lost, changes = self.lost_strides(source, after), {}
            if lost != (1, 1) or source.is_dense:
                changes = call.operation.dilated_config(source.rate)
                changes.pop("name", None)
            return replace(source, rate=_product(source.rate, lost)), changes
        if how is Kind.CROP:
            return source, {"cropping": source.scaled(call.operation.cropping)}
        # Layers with a fixed output size or an inexact output on a denser map raise an error.
        is_exact = how is Kind.GLOBAL and not isinstance(call.operation, kl.Flatten | kl.Reshape)
        if source.is_dense and not is_exact:
            raise layer_error(
                f"only layers that support a denser map at output stride {self.output_stride}",
                call.path,
                f"({type(call.operation).__name__}) resizes a map that becomes denser or needs a "
                "fixed size. Remove it from the network.",
            )
        return _Map(source.tensor, source.geometry), {}

    def merged(self, call: Call, maps: Sequence[_Map]) -> _Map:
        first, *others = [value for value in maps if value.is_map] or maps
        for other in others:
            if other.rate != first.rate:
                detail = f"merges maps that become denser by {first.rate} and {other.rate}."
                rule = f"branches that agree at output stride {self.output_stride}"
                raise layer_error(rule, call.path, detail)
            if other.phase != first.phase:
                raise _PhaseConflict
        return first

    def lost_strides(self, source: _Map, after: TensorGeometry) -> Pair:
        """The strides that an operation must give up: (1, 1), or all that it has."""
        if not source.is_dense and all(
            new is None or new <= self.output_stride for new in after.stride
        ):
            return (1, 1)
        pairs = zip(source.geometry.stride, after.stride, strict=True)
        return tuple(1 if new is None else max(1, int(new / old)) for old, new in pairs)

    def rewrite_window(self, call: Call, source: _Map, after: TensorGeometry) -> _Map:
        """A convolution or pooling, changed where the output stride requires it."""
        shape, lost = window(call.operation), self.lost_strides(source, after)
        if lost == (1, 1) or shape.padding != "valid":  # else the kernel chooses its own padding
            source = self.materialised(source)
        if lost == (1, 1) and not source.is_dense:
            (tensor,) = self.apply(self.layer(call, {}), call, [source.tensor])
            return replace(source, tensor=tensor, geometry=after)
        padding = [_dense_padding(shape, i, source, lost[i] > 1, self.centred) for i in (0, 1)]
        pads = tuple(pair for pair, _ in padding)
        is_pooling = isinstance(call.operation, POOLINGS)
        tensor = (self.pooling if is_pooling else self.convolution)(call, source, pads)
        phase = tuple(old + shift for old, (_, shift) in zip(source.phase, padding, strict=True))
        return _Map(tensor, after, _product(source.rate, lost), phase)

    def convolution(self, call: Call, source: _Map, pads: Pads) -> keras.KerasTensor:
        shape, x, padding = window(call.operation), source.tensor, "valid"
        rates = dilation(shape, source)
        margins = [rate * (kernel - 1) for rate, kernel in zip(rates, shape.kernel, strict=True)]
        if pads == tuple((margin // 2, margin - margin // 2) for margin in margins):
            padding = "same"
        elif _BY_SIZE not in pads:
            x = self.zero_padded(call, source, pads)
        else:
            name = self.name(f"{call.operation.name}_pad")
            extent = (shape.extent(0), shape.extent(1))
            settings = {"name": name, "dtype": x.dtype}
            x = AtrousPadding2D(extent, shape.strides, source.rate, **settings)(x)
        changes = {"strides": (1, 1), "dilation_rate": rates, "padding": padding}
        (tensor,) = self.apply(self.layer(call, changes), call, [x])
        return tensor

    def pooling(self, call: Call, source: _Map, pads: Pads) -> keras.KerasTensor:
        operation, shape, x = call.operation, window(call.operation), source.tensor
        if type(operation).call not in [each.call for each in POOLINGS]:
            detail = f"is a {type(operation).__name__}, whose `call` a dense pooling does not have."
            raise layer_error("poolings of Keras where the stride changes", call.path, detail)
        if shape.kernel == (1, 1) and source.padding is None:  # nothing but its stride
            return self.layer(call, {}, kl.Identity)(x)
        padding, source_strides = pads, None
        if source.padding is not None:  # zeros of the network's own take part in the pooling
            x, padding = self.zero_padded(call, source, pads), "valid"
        elif _BY_SIZE in pads:
            padding, source_strides = "same", shape.strides
        is_average = isinstance(operation, kl.AveragePooling2D) or (
            getattr(operation, "mode", None) == "average"
        )
        settings = {
            "pool_size": shape.kernel,
            "mode": "average" if is_average else "max",
            "dilation_rate": dilation(shape, source),
            "padding": padding,
            "source_strides": source_strides,
        }
        return self.layer(call, settings, AtrousPooling2D)(x)

    def materialised(self, source: _Map) -> _Map:
        """Makes a layer of padding that no kernel has replaced by its own."""
        call = source.padding
        if call is None:
            return source
        key = (id(source.tensor), call.path)
        if key not in self.padded and source.is_dense:
            self.padded[key] = self.zero_padded(call, source, source.scaled(call.operation.padding))
        elif key not in self.padded:
            (self.padded[key],) = self.apply(self.layer(call, {}), call, [source.tensor])
        return replace(source, tensor=self.padded[key], padding=None)

    def zero_padded(self, call: Call, source: _Map, pads: Pads) -> keras.KerasTensor:
        """Explicit zero padding, named after the padding or operation that it is for."""
        if not any(map(any, pads)):
            return source.tensor
        own = source.padding
        name = f"{call.operation.name}_pad" if own is None else own.operation.name
        return kl.ZeroPadding2D(pads, name=self.name(name), dtype=source.tensor.dtype)(
            source.tensor
        )


def dilation(shape: Window, source: _Map) -> Pair:
    """The kernel's own rate times the map's; a kernel of one pixel has none."""
    rates = zip(_product(shape.dilation, source.rate), shape.kernel, strict=True)
    return tuple(rate if kernel > 1 else 1 for rate, kernel in rates)


def _dense_padding(
    shape: Window, axis: int, source: _Map, is_lost: bool, centred: bool
) -> tuple[Pair | None, Phase]:
    """Padding of a dilated kernel along an axis, and how it shifts the samples.

    An original sample i reads from `stride * i - begin` on; the dense map must read the same
    pixels, `rate` times as far apart. A begin of `rate * begin` keeps the samples where they were;
    a larger one, if `centred`, keeps the map in the middle of its kernel, as in published networks.
    """
    rate, extent, stride = source.rate[axis], shape.extent(axis), shape.strides[axis]
    total = rate * (extent - 1)
    if not is_lost:
        own = {"valid": (0, 0), "same": ((extent - 1) // 2, extent // 2)}
        begin, end = own[shape.padding] if isinstance(shape.padding, str) else shape.padding[axis]
        return (rate * begin, rate * end), Counter()
    if shape.padding == "same":
        begin, _ = same_padding(None, extent, stride)
        if begin is None and not centred:
            return _BY_SIZE, Counter()
        dense = total // 2 if centred else rate * begin
        phase = Counter(constant=dense - rate * (begin or 0))
        if begin is None:
            phase[rate, extent, stride] += 1
        return (dense, total - dense), phase
    begin, end = (0, 0) if source.padding is None else source.padding.operation.padding[axis]
    # n samples become n / stride + grown of them; the dense map is to have rate * stride as many.
    grown = (begin + end - extent) // stride + 1
    room = total + grown * rate * stride
    dense = room // 2 if centred else rate * begin
    if not 0 <= dense - rate * begin <= rate * (stride - 1):
        dense = rate * begin  # the first original sample must lie on the dense map
    return (dense, room - dense), Counter(constant=dense - rate * begin)


def _product(first: Pair, second: Pair) -> Pair:
    return (first[0] * second[0], first[1] * second[1])
