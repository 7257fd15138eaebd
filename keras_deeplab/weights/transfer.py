"""Weights into a model, all or nothing, with a report."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np

from keras_deeplab.graph.network import all_layers, own_weights
from keras_deeplab.layers.composite import CompositeLayer
from keras_deeplab.weights.checkpoint import Checkpoint
from keras_deeplab.weights.errors import WeightsError
from keras_deeplab.weights.report import TransferReport

# Settings that do not change what weights mean: the papers themselves change them at evaluation.
_FREE_SETTINGS = (
    *("output_stride", "aspp_rates", "multi_grid", "num_classes", "dropout", "backbone"),
    *("auxiliary_layer", "backbone_options"),  # the options are compared one by one
)


def weighted_layers(model: keras.Model) -> dict[str, keras.layers.Layer]:
    """The layers with weights of their own by path, down to those inside composite layers."""
    return {path: layer for path, layer in all_layers(model).items() if own_weights(layer)}


def is_predictor(path: str) -> bool:
    """Whether a layer has one output for each class, by its name."""
    name = path.rsplit("/", 1)[-1]
    return name.startswith("logits") or name.endswith("logits")


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
    found = {path: _values(checkpoint, root + path, layer) for path, layer in layers.items()}
    found = {path: values for path, values in found.items() if values}
    _check_backbone(checkpoint, root, layers, found)
    misfits = {path: _misfit(path, layers[path], values) for path, values in found.items()}
    misfits = {path: text for path, text in misfits.items() if text}
    left, notes = _left(model, root, checkpoint, found, misfits)
    wrong = [text for path, text in misfits.items() if path not in left]
    if wrong:
        shown = "; ".join(wrong[:5]) + ("; ..." if len(wrong) > 5 else "")
        raise WeightsError(checkpoint.path, f"{len(wrong)} shapes do not fit: {shown}")
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


def _values(checkpoint: Checkpoint, path: str, layer: keras.layers.Layer) -> dict[str, np.ndarray]:
    """The checkpoint's arrays for a layer, by the variables' names."""
    bare = path.removeprefix("backbone/")
    named = {}
    for variable in own_weights(layer):
        for name in (f"{path}/{variable.name}", f"{bare}/{variable.name}"):
            if name in checkpoint.arrays:
                named[variable.name] = np.asarray(checkpoint.arrays[name])
                break
    if checkpoint.folded and "beta" in named and isinstance(layer, keras.layers.BatchNormalization):
        # The scale and mean are in the convolution: what is left is the identity and a shift.
        ones = np.ones_like(named["beta"])
        identity = {
            "gamma": ones,
            "moving_mean": 0 * ones,
            "moving_variance": ones - np.float32(layer.epsilon),
        }
        named = {**identity, **named}
    return named


def _misfit(path: str, layer: keras.layers.Layer, values: Mapping[str, np.ndarray]) -> str:
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
    """Refuses values that no trained network has.

    Args:
        path: The file, for messages.
        values: Names for messages, the variables, and values of their shapes.

    Raises:
        WeightsError: If a value is NaN or infinite in the variable's precision, or is a negative
            variance.
    """
    wrong = [text for name, variable, value in values if (text := _defect(name, variable, value))]
    if wrong:
        shown = "; ".join(wrong[:3]) + ("; ..." if len(wrong) > 3 else "")
        raise WeightsError(path, f"{len(wrong)} of its variables are broken: {shown}")


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
    model: keras.Model,
    root: str,
    checkpoint: Checkpoint,
    found: Mapping[str, Mapping[str, np.ndarray]],
    misfits: Mapping[str, str],
) -> tuple[set[str], list[str]]:
    """The layers with misfits that need not be loaded, and notes on them."""
    layers, left, notes = all_layers(model), set(), []
    own_class = type(model).__name__
    for path, misfit in misfits.items():
        shapes = [
            values["kernel"].shape if "kernel" in values else (None,)
            for values in ({w.name: w for w in own_weights(layers[path])}, found[path])
        ]
        if is_predictor(path) and shapes[0][:-1] == shapes[1][:-1]:
            mine, its = (shape[-1] for shape in shapes)
            left.add(path)
            notes.append(
                f"{path} predicts {mine} classes, the checkpoint's {its}: it was not loaded"
            )
        elif f"{root}{path}".startswith("backbone/"):
            continue
        elif checkpoint.model not in (own_class, None) or (
            checkpoint.model is None and is_predictor(path)
        ):
            whole = path.rpartition("/")[0]  # a convolution with its norm
            if not isinstance(layers.get(whole), CompositeLayer):
                whole = path
            left |= {other for other in found if f"{other}/".startswith(f"{whole}/")}
            notes.append(f"{whole} was not loaded: {misfit}")
    return left, notes


def _check_backbone(
    checkpoint: Checkpoint,
    root: str,
    layers: Mapping[str, keras.layers.Layer],
    found: Mapping[str, Any],
) -> None:
    lacking = [p for p in layers if f"{root}{p}".startswith("backbone/") and p not in found]
    if lacking or not found:
        shown = ", ".join(lacking[:5]) + (", ..." if len(lacking) > 5 else "")
        held = f" on the backbone {checkpoint.backbone!r}" if checkpoint.backbone else ""
        what = f"{len(lacking)} layers of the model's backbone: {shown}" if lacking else "any layer"
        raise WeightsError(
            checkpoint.path, f"it holds {checkpoint.title}{held}, which does not have {what}"
        )


def _setting_notes(model: keras.Model, checkpoint: Checkpoint) -> list[str]:
    """Settings of the model that differ from those that the weights were trained in."""
    if not hasattr(model, "backbone"):
        return []
    config = model.get_config()
    wanted = checkpoint.arguments(type(model).__name__, config)
    pairs = [(key, config[key], value) for key, value in wanted.items() if key in config]
    options = config.get("backbone_options") or {}
    pairs += [
        (key, options[key], value)
        for key, value in wanted.get("backbone_options", {}).items()
        if key in options
    ]
    return [
        f"`{key}` is {own!r}; the weights were trained with {value!r}"
        for key, own, value in pairs
        if key not in _FREE_SETTINGS and not _same(own, value)
    ]


def _same(own: Any, value: Any) -> bool:
    if isinstance(own, list | tuple) and isinstance(value, list | tuple):
        return list(own) == list(value)
    return own == value
