"""The groups that the papers' recipes need, read from a model's layers."""

from __future__ import annotations

from collections.abc import Sequence
from glob import escape
from typing import Any

import keras
from keras import layers as kl

from keras_deeplab.graph.network import Call, all_layers, functional, walk
from keras_deeplab.optimizers.parameter_group import ParameterGroup, checked_multiplier

KINDS = ("depthwise", "bias", "norm")

_NORMS = (
    kl.BatchNormalization,
    kl.GroupNormalization,
    kl.LayerNormalization,
    kl.RMSNormalization,
)
_DEPTHWISE = (kl.DepthwiseConv1D, kl.DepthwiseConv2D)
_SEPARABLE = (kl.SeparableConv1D, kl.SeparableConv2D)
_CONVS = (kl.Conv1D, kl.Conv2D, kl.Conv3D)


def no_decay(model: keras.Model, kinds: Sequence[str] = KINDS) -> list[ParameterGroup]:
    """A group without weight decay: depthwise kernels, biases, and scales and offsets of norms.

    What a variable is, is read from its layer, at any depth of the model: `"depthwise"` are the
    kernels of Keras' depthwise and separable convolutions and of grouped ones with one channel
    each, `"bias"` is any layer's `bias`, `"norm"` what Keras' norms scale and shift by. Variables
    that are frozen now are among them, for when they no longer are.

    Args:
        model: A model with weights.
        kinds: Which of `"depthwise"`, `"bias"` and `"norm"`.

    Returns:
        A list of one group of exact paths, or an empty one where there is no such variable.

    Raises:
        ValueError: If a kind is none of those, the model has no weights yet, or a variable that
            decays has the path of one that does not.

    Example:

    >>> x = inputs = keras.Input((8, 8, 3))
    >>> x = keras.layers.DepthwiseConv2D(3, use_bias=False, name="depthwise")(x)
    >>> x = keras.layers.Conv2D(2, 1, name="logits")(x)
    >>> no_decay(keras.Model(inputs, x))
    [ParameterGroup(pattern=('depthwise/kernel', 'logits/bias'), learning_rate=1.0,
    weight_decay=0.0)]

    Reference:
        [Chen et al., 2018, DeepLabV3+](https://arxiv.org/abs/1802.02611): its released code
        decays the kernels of all convolutions but the depthwise ones, and nothing else.
    """
    if isinstance(kinds, str) or not set(kinds) <= set(KINDS):
        raise ValueError(f"kinds must be some of {KINDS}; received {kinds!r}")
    if not model.weights:
        raise ValueError(
            f"model must have weights, build it first; received {type(model).__name__} "
            f"'{model.name}' without any"
        )
    chosen = [v for layer in all_layers(model).values() for k in kinds for v in _of_kind(layer, k)]
    return _group(model, chosen, weight_decay=0.0)


def classifier(
    model: keras.Model, learning_rate: float = 10.0, bias: float = 20.0
) -> list[ParameterGroup]:
    """Groups of other learning rates for the layers that the logits come from.

    Those are the last layers with weights on every way to the model's outputs: each of DeepLab V2's
    predictors, the auxiliary head's beside the main one, and that inside a `MultiScale`.

    Args:
        model: Any functional Keras model.
        learning_rate: Multiplier for the kernels of these layers.
        bias: Multiplier for their biases.

    Returns:
        A list of a group of the kernels and, where there are some, one of the biases.

    Raises:
        ValueError: If the model is not functional or has no layer with weights, a multiplier is out
            of its range, or another variable has the path of one of these.

    Example:

    >>> model = keras_deeplab.DeepLabV2(3, "mobilenet_v2", aspp_rates=(6, 12))
    >>> for group in classifier(model):
    ...     print(group.pattern, group.learning_rate)
    ('logits_0/kernel', 'logits_1/kernel') 10.0
    ('logits_0/bias', 'logits_1/bias') 20.0

    Reference:
        [Chen et al., 2014, DeepLab V1](https://arxiv.org/abs/1412.7062), section 5, and [Chen et
        al., 2017, DeepLab V2](https://arxiv.org/abs/1606.00915), section 4.1.1: ten times the
        learning rate for the final classifier layer; twenty for its bias in the released networks.
    """
    learning_rate = checked_multiplier("learning_rate", learning_rate)
    bias = checked_multiplier("bias", bias)
    layers = predictors(model)
    if not layers:
        raise ValueError(f"model must have a layer with weights; received '{model.name}'")
    weights = [weight for layer in layers for weight in layer.weights]
    mine = {id(weight) for weight in weights}
    every_bias = [v for layer in all_layers(model).values() for v in _of_kind(layer, "bias")]
    biases = [variable for variable in every_bias if id(variable) in mine]
    of_bias = {id(variable) for variable in biases}
    kernels = [weight for weight in weights if id(weight) not in of_bias]
    return [
        *_group(model, kernels, learning_rate=learning_rate),
        *_group(model, biases, learning_rate=bias),
    ]


def backbone(model: keras.Model, learning_rate: float = 0.1) -> list[ParameterGroup]:
    """A group of another learning rate for the backbone of one of this package's models.

    A backbone that was trained before is changed little by a small rate, and keeps what it knows of
    images that are not in a small data set; the head is new and learns fast.

    Args:
        model: A model with a backbone, or a `MultiScale` around one.
        learning_rate: Multiplier for all of the backbone's variables that are trained.

    Returns:
        A list of one group of exact paths, or an empty one where the backbone is frozen.

    Raises:
        ValueError: If the model has no backbone, the multiplier is out of its range, or another
            variable has the path of one of these.

    Example:

    >>> model = keras_deeplab.DeepLabV3Plus(3, "mobilenet_v2")  # with weights="imagenet", say
    >>> optimizer = keras_deeplab.optimizers.AdamW(1e-3, groups=backbone(model, 0.25))
    """
    learning_rate = checked_multiplier("learning_rate", learning_rate)
    found = [layer for layer in all_layers(model).values() if layer.name == "backbone"]
    if not found:
        raise ValueError(
            f"model must have a layer 'backbone', as this package's have; received '{model.name}'"
        )
    chosen = [variable for network in found for variable in network.trainable_variables]
    return _group(model, chosen, learning_rate=learning_rate)


def _of_kind(layer: keras.layers.Layer, kind: str) -> list[keras.Variable]:
    """A layer's own variables of a kind."""
    names: tuple[str, ...] = ()
    if kind == "bias":
        names = ("bias",)
    elif kind == "norm" and isinstance(layer, _NORMS):
        names = ("gamma", "beta", "scale")
    elif kind == "depthwise" and isinstance(layer, _SEPARABLE):
        names = ("depthwise_kernel",)
    elif kind == "depthwise" and (isinstance(layer, _DEPTHWISE) or _is_depthwise(layer)):
        names = ("kernel",)
    # Whatever else is called so (a function, a flag: LayerNormalization's `scale`) is no variable.
    found = [getattr(layer, name, None) for name in names]
    return [value for value in found if isinstance(value, keras.Variable)]


def _is_depthwise(layer: keras.layers.Layer) -> bool:
    """Tells whether a convolution has one input channel in each of several groups."""
    return isinstance(layer, _CONVS) and layer.groups > 1 and layer.kernel.shape[-2] == 1


def predictors(model: keras.Model) -> list[keras.layers.Layer]:
    """The last layers with weights on every way to a functional model's outputs, in order."""
    # What is trained beside the answer is in another graph (models.deep_supervision).
    network = getattr(model, "training_graph", None)
    network = model if network is None else network

    def last(call: Call, *args: Any, **kwargs: Any) -> list[frozenset[keras.layers.Layer]]:
        layer, before = call.operation, keras.tree.flatten((args, kwargs))
        found = frozenset().union(*(value for value in before if isinstance(value, frozenset)))
        if isinstance(layer, keras.layers.Layer) and layer.weights:
            found = frozenset([layer])
        return [found] * len(call.outputs)

    ends = walk(network, [frozenset()] * len(functional(network).inputs), last)
    found = frozenset().union(*ends)
    return [layer for layer in all_layers(model).values() if layer in found]


def _group(
    model: keras.Model, chosen: Sequence[keras.Variable], **multipliers: float
) -> list[ParameterGroup]:
    """A group of exactly these variables; none where there are none."""
    paths = dict.fromkeys(variable.path for variable in chosen)  # each once, in order
    ids = {id(variable) for variable in chosen}
    for weight in model.weights:
        if weight.path in paths and id(weight) not in ids:
            raise ValueError(
                "model must not have one path for a variable in a group and one outside it, rename "
                f"one of their layers; received '{model.name}' with two variables {weight.path!r}"
            )
    return [ParameterGroup(tuple(map(escape, paths)), **multipliers)] if paths else []
