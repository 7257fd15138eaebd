"""Weights into a model, all or nothing, with a report."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_deeplab.graph.network import all_layers, own_weights
from keras_deeplab.layers.composite import CompositeLayer
from keras_deeplab.weights.checkpoint import Checkpoint
from keras_deeplab.weights.errors import WeightsError, listed

# Settings that do not change what weights mean: the papers themselves change them at evaluation.
_FREE_SETTINGS = (
    *("output_stride", "aspp_rates", "multi_grid", "num_classes", "dropout", "backbone"),
    *("auxiliary_layer", "backbone_options"),  # the options are compared one by one
)
_Values = Mapping[str, np.ndarray]  # by the names of a layer's variables


@dataclass(frozen=True)
class TransferReport:
    """Which weights were loaded into a model.

    Attributes:
        loaded: Names of the layers whose weights were loaded.
        missing_keys: Names of the layers that the checkpoint lacks or that do not fit, which keep
            their own weights.
        unexpected_keys: Names of the checkpoint's variables that are not in the model.
        notes: Further facts: a class predictor that was not loaded, settings in which the model
            differs from the network that the weights were trained in.
        source: The network that the checkpoint holds, and the file.
    """

    loaded: tuple[str, ...]
    missing_keys: tuple[str, ...]
    unexpected_keys: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    source: str | None = None

    def __str__(self) -> str:
        # One name for a composite layer that is missing as a whole.
        partly = {path.partition("/")[0] for path in self.loaded}
        roots = {path: path.partition("/")[0] for path in self.missing_keys}
        missing = dict.fromkeys(path if root in partly else root for path, root in roots.items())
        head = "" if self.source is None else f"{self.source}: "
        lines = [
            f"{head}loaded {len(self.loaded)} layers; missing keys: {', '.join(missing) or 'none'}"
        ]
        if keys := self.unexpected_keys:
            lines.append(f"unexpected keys: {len(keys)}: {listed(keys)}")
        return "\n".join([*lines, *self.notes])


def weighted_layers(model: keras.Model) -> dict[str, keras.layers.Layer]:
    """The layers with weights of their own by path, down to those inside composite layers."""
    return {path: layer for path, layer in all_layers(model).items() if own_weights(layer)}


def transfer(model: keras.Model, checkpoint: Checkpoint) -> TransferReport:
    """Copies a checkpoint's weights into the layers of the same paths.

    All is checked before the first weight is changed. A layer is loaded as a whole or not, a
    convolution with its norm.

    Args:
        model: A model of this package, or one of its backbones.
        checkpoint: The weights.

    Returns:
        The report.

    Raises:
        WeightsError: If a shape does not fit, a variable is missing, a value is NaN or infinite
            in the model's precision, a variance is negative, or a part of the backbone is missing.
            A class predictor for another number of classes, and layers of the head when the
            weights are of another class of model, raise no error: the report has a note.
    """
    layers = weighted_layers(model)
    root = "" if any(path.startswith("backbone/") for path in layers) else "backbone/"
    backbone = {path for path in layers if f"{root}{path}".startswith("backbone/")}
    found = {path: _values(checkpoint, root + path, layer) for path, layer in layers.items()}
    found = {path: values for path, values in found.items() if values}
    lacking = [path for path in layers if path in backbone and path not in found]
    if lacking or not found:
        held = f" on the backbone {checkpoint.backbone!r}" if checkpoint.backbone else ""
        what = f"{len(lacking)} layers of the model's backbone: {listed(lacking)}"
        raise WeightsError(
            checkpoint.path,
            f"it holds {checkpoint.title}{held}, which does not have "
            f"{what if lacking else 'any layer'}",
        )
    left, notes = _left(model, checkpoint, found, backbone)
    loaded = [path for path in found if path not in left]
    pairs = [
        (f"{path}/{variable.name}", variable, found[path][variable.name])
        for path in loaded
        for variable in own_weights(layers[path])
    ]
    check_values(checkpoint.path, pairs)
    for _, variable, value in pairs:
        variable.assign(value)
    taken = {f"{root}{path}" for path in loaded}
    unused = (
        name
        for name in checkpoint.arrays
        if not {name.rpartition("/")[0], f"backbone/{name.rpartition('/')[0]}"} & taken
    )
    return TransferReport(
        tuple(loaded),
        tuple(path for path in layers if path not in loaded),
        (*unused, *checkpoint.unexpected_keys),
        (*checkpoint.notes, *notes, *_setting_notes(model, checkpoint)),
        f"{checkpoint.title} ({checkpoint.path})",
    )


def _values(checkpoint: Checkpoint, path: str, layer: keras.layers.Layer) -> _Values:
    """The checkpoint's arrays for a layer; a backbone alone has names without "backbone/"."""
    values = {}
    for variable in own_weights(layer):
        name = f"{path}/{variable.name}"
        for key in (name, name.removeprefix("backbone/")):
            if key in checkpoint.arrays:
                values[variable.name] = np.asarray(checkpoint.arrays[key])
                break
    if checkpoint.folded and "beta" in values:
        # The scale and mean are in the convolution: what is left is the identity and a shift.
        one, zero = np.ones_like(values["beta"]), np.zeros_like(values["beta"])
        variance = one - np.float32(layer.epsilon)
        values = {"gamma": one, "moving_mean": zero, "moving_variance": variance, **values}
    return values


def _misfit(path: str, layer: keras.layers.Layer, values: _Values) -> str:
    """The first variable that is missing or has another shape, in words; else empty."""
    for variable in own_weights(layer):
        value, mine = values.get(variable.name), f"{path}/{variable.name} is {variable.shape}"
        if value is None:
            return f"{mine}, the checkpoint has none"
        if value.shape != variable.shape:
            return f"{mine}, the checkpoint's {value.shape}"
    return ""


def check_values(
    path: str | os.PathLike, values: Iterable[tuple[str, keras.Variable, np.ndarray]]
) -> None:
    """Refuses values of variables that are not finite numbers or are negative variances."""
    wrong = [text for name, variable, value in values if (text := _defect(name, variable, value))]
    if wrong:
        raise WeightsError(path, f"{len(wrong)} of its variables are broken: {listed(wrong, '; ')}")


def _defect(name: str, variable: keras.Variable, value: np.ndarray) -> str:
    """What is wrong with a value in the variable's own precision, in words; else empty.

    One NaN in a backbone makes every pixel class 0, without any error.
    """
    if value.dtype.kind not in "biufV" or value.dtype.names:  # V is bfloat16 too
        return f"{name} must hold numbers. Received: dtype={value.dtype}"
    with np.errstate(over="ignore"):
        value = value.astype(variable.dtype)
    broken = value.size - np.count_nonzero(np.isfinite(value))
    if broken:
        return (
            f"{name} must hold finite {variable.dtype} values. Received: {broken} of {value.size} "
            "values are NaN or infinite"
        )
    if variable.name == "moving_variance" and (negative := np.count_nonzero(value < 0)):
        return f"{name} must not be negative. Received: {negative} of {value.size} values below 0"
    return ""


def _left(
    model: keras.Model, checkpoint: Checkpoint, found: Mapping[str, _Values], backbone: set[str]
) -> tuple[set[str], list[str]]:
    """The layers that do not fit and need not be loaded, and notes on them."""
    layers, left, notes, wrong = all_layers(model), set(), [], []
    for path, values in found.items():
        misfit = _misfit(path, layers[path], values)
        if not misfit:
            continue
        is_predictor = path.rpartition("/")[2].startswith("logits")
        own = {variable.name: variable for variable in own_weights(layers[path])}
        mine, its = (getattr(each.get("kernel"), "shape", ()) for each in (own, values))
        if is_predictor and mine and its and mine[:-1] == its[:-1]:
            left.add(path)
            notes.append(
                f"{path} predicts {mine[-1]} classes, the checkpoint's {its[-1]}: it was not loaded"
            )
        elif path not in backbone and (
            is_predictor if checkpoint.model is None else checkpoint.model != type(model).__name__
        ):
            whole = path.rpartition("/")[0]  # a convolution with its norm
            if not isinstance(layers.get(whole), CompositeLayer):
                whole = path
            left |= {other for other in found if f"{other}/".startswith(f"{whole}/")}
            notes.append(f"{whole} was not loaded: {misfit}")
        else:
            wrong.append((path, misfit))
    wrong = [misfit for path, misfit in wrong if path not in left]
    if wrong:
        raise WeightsError(
            checkpoint.path, f"{len(wrong)} shapes do not fit: {listed(wrong, '; ')}"
        )
    return left, notes


def _setting_notes(model: keras.Model, checkpoint: Checkpoint) -> list[str]:
    """Settings of the model that differ from those that the weights were trained in."""
    if not hasattr(model, "backbone"):
        return []
    config = model.get_config()
    wanted = checkpoint.arguments(type(model).__name__, config)
    options = config.get("backbone_options") or {}
    wanted_options = wanted.get("backbone_options", {})
    pairs = [(key, config[key], value) for key, value in wanted.items() if key in config]
    pairs += [(key, options[key], value) for key, value in wanted_options.items() if key in options]
    return [
        f"`{key}` is {own!r}; the weights were trained with {value!r}"
        for key, own, value in pairs
        if key not in _FREE_SETTINGS and not _same(own, value)
    ]


def _same(own: Any, value: Any) -> bool:
    if isinstance(own, list | tuple) and isinstance(value, list | tuple):
        return list(own) == list(value)
    return own == value
