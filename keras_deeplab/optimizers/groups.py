"""Groups of variables with multipliers of their own, by paths or read from a model's layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from glob import escape
from typing import Any

import keras
from keras import layers as kl

from keras_deeplab import validation
from keras_deeplab.graph.network import Call, all_layers, functional, is_network, walk
from keras_deeplab.names import suggestion

# Names of variables that the authors do not decay in any layer.
_UNDECAYED = ("bias", "gamma", "beta", "scale", "depthwise_kernel")


@dataclass(frozen=True)
class ParameterGroup:
    """Multipliers of learning rate and weight decay for the variables of some paths.

    A variable's multipliers are the products over all groups it is in, or 1.

    Args:
        pattern: A path as in `[variable.path for variable in model.trainable_variables]`, such as
            `"logits_0/kernel"`, or a tuple of paths, with the wildcards of the module `fnmatch`:
            `*` matches any characters (also `/`). Case matters.
        lr_multiplier: Multiplies the optimizer's learning rate, non-negative. With 0 the variable
            does not change.
        weight_decay_multiplier: Multiplies the optimizer's weight decay, non-negative.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    >>> slow = ParameterGroup("block*/kernel", lr_multiplier=0.1)
    >>> slow.matches("block3_conv1/kernel"), slow.matches("logits/kernel")
    (True, False)
    """

    pattern: str | tuple[str, ...]
    lr_multiplier: float = 1.0
    weight_decay_multiplier: float = 1.0

    def __post_init__(self) -> None:
        patterns = self.pattern if isinstance(self.pattern, list | tuple) else (self.pattern,)
        if not patterns or not all(isinstance(p, str) and p for p in patterns):
            raise validation.error("pattern", "a path or a tuple of paths", self.pattern)
        object.__setattr__(self, "pattern", tuple(patterns))
        for name in ("lr_multiplier", "weight_decay_multiplier"):
            object.__setattr__(self, name, validation.non_negative(name, getattr(self, name)))

    def matches(self, path: str) -> bool:
        """Whether the variable of this path is in the group."""
        return any(fnmatchcase(path, pattern) for pattern in self.pattern)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments as JSON types."""
        return {**asdict(self), "pattern": list(self.pattern)}


def multipliers(
    groups: Sequence[ParameterGroup], variables: Sequence[keras.Variable]
) -> list[tuple[float, float]]:
    """Computes the multipliers of each variable's learning rate and weight decay."""
    # Variables of TensorFlow, in a user's own training loop, have no path.
    paths = [getattr(variable, "path", variable.name) for variable in variables]
    for group in groups:
        if not any(map(group.matches, paths)):
            rule = f"groups that each match one of the {len(paths)} trainable variables"
            raise validation.error(
                "groups", rule, group.pattern, suggestion(group.pattern[0], paths)
            )
    found = []
    for path in paths:
        mine = [group for group in groups if group.matches(path)]
        rate = math.prod(group.lr_multiplier for group in mine)
        decay = math.prod(group.weight_decay_multiplier for group in mine)
        found.append((float(rate), float(decay)))
    return found


def no_decay(model: keras.Model) -> list[ParameterGroup]:
    """A group without weight decay: depthwise kernels, biases, and scales and offsets of norms.

    Layers at any depth are included: the kernels of depthwise and separable convolutions and of
    grouped ones with one input channel per group, and all variables called `bias`, `gamma`, `beta`
    or `scale`. Frozen ones are included, so that the group stays valid when they are unfrozen.

    Args:
        model: A model with weights.

    Returns:
        A list of one group of exact paths, or an empty list if there is no such variable.

    Raises:
        ValueError: If the model has no weights yet, or another variable has one of these paths.

    Example:

    >>> x = inputs = keras.Input((8, 8, 3))
    >>> x = keras.layers.DepthwiseConv2D(3, use_bias=False, name="depthwise")(x)
    >>> x = keras.layers.Conv2D(2, 1, name="logits")(x)
    >>> no_decay(keras.Model(inputs, x))
    [ParameterGroup(pattern=('depthwise/kernel', 'logits/bias'), lr_multiplier=1.0,
    weight_decay_multiplier=0.0)]

    Reference:
        [Chen et al., 2018, DeepLabV3+](https://arxiv.org/abs/1802.02611): its released code
        decays the kernels of all convolutions but the depthwise ones, and nothing else.
    """
    if not model.weights:
        raise validation.error("model", "a built model with weights", model.name)
    layers = all_layers(model).values()
    chosen = [weight for layer in layers for weight in layer.weights if _undecayed(layer, weight)]
    return _group(model, chosen, weight_decay_multiplier=0.0)


def _undecayed(layer: keras.layers.Layer, weight: keras.Variable) -> bool:
    if weight.name != "kernel":
        return weight.name in _UNDECAYED
    is_depthwise = isinstance(layer, kl.DepthwiseConv1D | kl.DepthwiseConv2D)
    return is_depthwise or (getattr(layer, "groups", 1) > 1 and weight.shape[-2] == 1)


def classifier(
    model: keras.Model, lr_multiplier: float = 10.0, bias_lr_multiplier: float = 20.0
) -> list[ParameterGroup]:
    """Groups with larger learning rates for the layers that compute the logits.

    Those are the last layers with weights on each path to the model's outputs: all predictors of
    DeepLab V2, that of an auxiliary head too, and the one inside a `MultiScale`.

    Args:
        model: Any functional Keras model.
        lr_multiplier: Multiplier for the kernels of these layers.
        bias_lr_multiplier: Multiplier for their biases.

    Returns:
        A list of a group of the kernels and, if any, one of the biases.

    Raises:
        ValueError: If the model is not functional or has no layer with weights, a multiplier is
            out of its range, or another variable has one of these paths.

    Example:

    >>> model = keras_deeplab.DeepLabV2(3, "mobilenet_v2", aspp_rates=(6, 12))
    >>> for group in classifier(model):
    ...     print(group.pattern, group.lr_multiplier)
    ('logits_0/kernel', 'logits_1/kernel') 10.0
    ('logits_0/bias', 'logits_1/bias') 20.0

    Reference:
        [Chen et al., 2014, DeepLab V1](https://arxiv.org/abs/1412.7062), section 5, and [Chen et
        al., 2017, DeepLab V2](https://arxiv.org/abs/1606.00915), section 4.1.1: ten times the
        learning rate for the final classifier layer; twenty for its bias in the released networks.
    """
    validation.non_negative("bias_lr_multiplier", bias_lr_multiplier)
    weights = [weight for layer in predictors(model) for weight in layer.weights]
    if not weights:
        raise validation.error("model", "a model with a layer that has weights", model.name)
    return [
        *_group(model, [w for w in weights if w.name != "bias"], lr_multiplier=lr_multiplier),
        *_group(model, [w for w in weights if w.name == "bias"], lr_multiplier=bias_lr_multiplier),
    ]


def backbone(model: keras.Model, lr_multiplier: float = 0.1) -> list[ParameterGroup]:
    """A group with a smaller learning rate for the backbone of one of this package's models.

    For fine-tuning: a pretrained backbone keeps its features, while the new head learns fast.

    Args:
        model: A model with a backbone, or a `MultiScale` around one.
        lr_multiplier: Multiplier for all trainable variables of the backbone.

    Returns:
        A list of one group of exact paths, or an empty list if the backbone is frozen.

    Raises:
        ValueError: If the model has no backbone, the multiplier is out of its range, or another
            variable has one of these paths.

    Example:

    >>> model = keras_deeplab.DeepLabV3Plus(3, "mobilenet_v2")  # with weights="imagenet", say
    >>> optimizer = keras_deeplab.optimizers.AdamW(1e-3, groups=backbone(model, 0.25))
    """
    found = [layer for layer in all_layers(model).values() if layer.name == "backbone"]
    if not found:
        raise validation.error("model", "a model with a layer named backbone", model.name)
    chosen = [variable for network in found for variable in network.trainable_variables]
    return _group(model, chosen, lr_multiplier=lr_multiplier)


def predictors(model: keras.Model) -> list[keras.layers.Layer]:
    """The last layers with weights on each path to a functional model's outputs, in order."""
    network = getattr(model, "training_graph", None) or model  # with the auxiliary head

    def last(call: Call, before: list[frozenset]) -> list[frozenset[keras.layers.Layer]]:
        layer = call.operation
        if is_network(layer):
            return walk(layer, before, last)
        found = frozenset().union(*before)
        if isinstance(layer, keras.layers.Layer) and layer.weights:
            found = frozenset([layer])
        return [found] * len(call.outputs)

    ends = walk(network, [frozenset()] * len(functional(network).inputs), last)
    found = frozenset().union(*ends)
    return [layer for layer in all_layers(model).values() if layer in found]


def _group(
    model: keras.Model, chosen: Sequence[keras.Variable], **multipliers: float
) -> list[ParameterGroup]:
    """A list of a group of exactly these variables, empty if there are none."""
    paths = dict.fromkeys(variable.path for variable in chosen)  # each once, in order
    ids = {id(variable) for variable in chosen}
    for weight in model.weights:
        if weight.path in paths and id(weight) not in ids:
            rule = f"a model with a single variable {weight.path!r}"
            raise validation.error("model", rule, model.name, "Rename a layer.")
    return [ParameterGroup(tuple(map(escape, paths)), **multipliers)] if paths else []
