"""Weights into a model, all or nothing, with a report."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_deeplab.graph.network import all_layers, finalize_state, own_weights
from keras_deeplab.names import first_few
from keras_deeplab.weights.checkpoint import RGB, Checkpoint
from keras_deeplab.weights.errors import WeightsError

# Settings that do not change what weights mean: the papers themselves change them at evaluation.
_FREE_SETTINGS = (
    *("output_stride", "aspp_rates", "multi_grid", "num_classes", "dropout", "backbone"),
    # The options are compared one by one, and a kernel of other channels does not fit.
    *("auxiliary_layer", "backbone_options", "input_shape"),
)


@dataclass(frozen=True)
class TransferReport:
    """Which weights were loaded into a model.

    Attributes:
        loaded: Names of the layers whose weights were loaded.
        missing_keys: Names of the layers that the checkpoint lacks or that do not fit, which keep
            their own weights.
        unexpected_keys: Names of the checkpoint's variables that are not in the model.
        notes: Layers of the head that do not fit, and settings in which the model differs from the
            network that the weights were trained in.
        checkpoint: The network in the checkpoint, and its file.
    """

    loaded: tuple[str, ...]
    missing_keys: tuple[str, ...]
    unexpected_keys: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    checkpoint: str = ""

    def __str__(self) -> str:
        missing = first_few(self.missing_keys) or "none"
        lines = [f"{self.checkpoint}: loaded {len(self.loaded)} layers; missing keys: {missing}"]
        if keys := self.unexpected_keys:
            lines.append(f"unexpected keys: {len(keys)}: {first_few(keys)}")
        return "\n".join([*lines, *self.notes])


def weighted_layers(model: keras.Model) -> dict[str, keras.layers.Layer]:
    """The layers with weights of their own by path, down to those inside composite layers.

    A model whose class adds weights is one of them, under the path "".
    """
    layers = {"": model, **all_layers(model)}
    return {path: layer for path, layer in layers.items() if own_weights(layer)}


def transfer(model: keras.Model, checkpoint: Checkpoint) -> TransferReport:
    """Copies a checkpoint's weights into the layers of the same paths, as `load` does."""
    layers = weighted_layers(model)
    is_whole = any(path.startswith("backbone/") for path in layers)
    backbone = {path for path in layers if path.startswith("backbone/") or (path and not is_whole)}
    # Either may be a backbone alone, whose names have no "backbone/".
    prefix = "" if is_whole or not checkpoint.has("backbone/") else "backbone/"
    cut = "backbone/" if is_whole and not checkpoint.has("backbone/") else ""
    keys = {path: f"{prefix}{path.removeprefix(cut)}/" for path in layers}
    found = {path: _values(checkpoint, keys[path], layer) for path, layer in layers.items()}
    found = {path: values for path, values in found.items() if values}
    widened = [path for path in found if _fit_channels(layers[path], found[path])]
    lacking = [path for path in layers if path in backbone and path not in found]
    if lacking or not found:
        what = f"{len(lacking)} layers of the model's backbone: {first_few(lacking)}"
        raise WeightsError(checkpoint.path, f"it holds {checkpoint}, which does not have {what}")
    may_differ = checkpoint.model not in (None, type(model).__name__)
    parts = {path.partition("/")[0] for path in found}
    absent = [path for path in layers.keys() - found.keys() if path.partition("/")[0] in parts]
    if absent and not may_differ:
        what = f"{len(absent)} layers of the model's head: {first_few(sorted(absent))}"
        raise WeightsError(checkpoint.path, f"it holds {checkpoint}, which does not have {what}")
    left, notes = set(), []
    for path in found:
        misfit = _misfit(path, layers[path], found[path])
        if not misfit or path in left:
            continue
        is_predictor = _differs_in_classes(layers[path], found[path])
        if path in backbone or not (is_predictor or may_differ):
            raise WeightsError(checkpoint.path, misfit)
        composite = path.rpartition("/")[0]  # a convolution with its norm
        whole = path if is_predictor or not composite else composite
        left |= {other for other in found if f"{other}/".startswith(f"{whole}/")}
        notes.append(f"{whole} was not loaded: {misfit}")
    rgb = "was trained on RGB: further channels have the mean of the kernels, fewer their sum"
    notes += [f"{path} {rgb}" for path in widened]
    loaded = [path for path in found if path not in left]
    pairs = [
        (f"{path}/{name}", variable, found[path][name])
        for path in loaded
        for name, variable in own_weights(layers[path]).items()
    ]
    check_values(checkpoint.path, pairs)
    for _, variable, value in pairs:
        variable.assign(value)
    finalize_state(model)
    taken = {keys[path] + name for path in loaded for name in found[path]}
    return TransferReport(
        tuple(path or model.name for path in loaded),
        tuple(path or model.name for path in layers if path not in loaded),
        (*(name for name in checkpoint.arrays if name not in taken), *checkpoint.unexpected),
        (*notes, *_setting_notes(model, checkpoint)),
        f"{checkpoint} ({checkpoint.path})",
    )


def _values(checkpoint: Checkpoint, scope: str, layer: keras.layers.Layer) -> dict[str, np.ndarray]:
    """The checkpoint's arrays for a layer's variables."""
    values = {
        name: np.asarray(checkpoint.arrays[scope + name])
        for name in own_weights(layer)
        if scope + name in checkpoint.arrays
    }
    if checkpoint.folded and "beta" in values:
        # The scale and mean are in the convolution: what is left is the identity and a shift.
        one, zero = np.ones_like(values["beta"]), np.zeros_like(values["beta"])
        variance = one - np.float32(layer.epsilon)
        values = {"gamma": one, "moving_mean": zero, "moving_variance": variance, **values}
    return values


def _fit_channels(layer: keras.layers.Layer, values: dict[str, np.ndarray]) -> bool:
    """Gives the kernel on RGB pixels the model's channels; returns whether it has others.

    Fewer channels get equal shares of the sum, so that grey pixels have the response that they had
    as RGB: exactly if all channels are scaled alike (`"tf"`), else approximately. Of more the first
    three keep their kernels, and the others get the mean of these.
    """
    kernel = values.get("kernel")
    if kernel is None or kernel.ndim != 4 or not isinstance(layer, keras.layers.Conv2D):
        return False
    height, width, channels, filters = layer.kernel.shape
    if kernel.shape != (height, width, RGB, filters) or channels == RGB:
        return False
    count = max(0, channels - RGB) or channels
    new = kernel.sum(2, keepdims=True) / (RGB if channels > RGB else channels)
    kept = kernel if channels > RGB else kernel[:, :, :0]
    values["kernel"] = np.concatenate([kept, np.repeat(new, count, 2)], 2)
    return True


def _misfit(path: str, layer: keras.layers.Layer, values: Mapping[str, np.ndarray]) -> str:
    """The first variable that is missing or has another shape, in words; else empty."""
    for name, variable in own_weights(layer).items():
        value = values.get(name)
        if value is None or value.shape != variable.shape:
            its = "missing" if value is None else value.shape
            return f"{path}/{name} is {variable.shape}, the checkpoint's {its}"
    return ""


def _differs_in_classes(layer: keras.layers.Layer, values: Mapping[str, np.ndarray]) -> bool:
    """Whether a layer is a class predictor, and its kernel fits but for the number of classes."""
    if not layer.name.startswith("logits") or "kernel" not in values:
        return False
    own, its = layer.kernel.shape, values["kernel"].shape
    return own[:-1] == its[:-1] and own[-1] != its[-1]


def check_values(
    path: str | os.PathLike, values: Iterable[tuple[str, keras.Variable, np.ndarray]]
) -> None:
    """Refuses values that are not finite in the variable's precision, and negative variances.

    One NaN in a backbone makes every pixel class 0, without any error.
    """
    for name, variable, value in values:
        if value.dtype.kind not in "biufV" or value.dtype.names:  # V is bfloat16 too
            raise WeightsError(path, f"{name} must hold numbers. Received: dtype={value.dtype}")
        with np.errstate(over="ignore"):
            value = value.astype(variable.dtype)
        wrong, rule = ~np.isfinite(value), f"hold finite {variable.dtype} values"
        if variable.name == "moving_variance" and not wrong.any():
            wrong, rule = value < 0, "not be negative"
        if count := np.count_nonzero(wrong):
            raise WeightsError(
                path, f"{name} must {rule}. Received: {count} wrong ones of {value.size}"
            )


def _setting_notes(model: keras.Model, checkpoint: Checkpoint) -> list[str]:
    """Settings of the model that differ from those that the weights were trained in."""
    own = model.get_config() if hasattr(model, "backbone") else {}
    wanted = checkpoint.arguments(type(model).__name__, own)
    options = own.get("backbone_options") or {}
    wanted_options = wanted.get("backbone_options", {})
    pairs = [(key, own[key], value) for key, value in wanted.items() if key in own]
    pairs += [(key, options[key], value) for key, value in wanted_options.items() if key in options]
    return [
        f"`{key}` is {mine!r}; the weights were trained with {value!r}"
        for key, mine, value in pairs
        if key not in _FREE_SETTINGS and _plain(mine) != _plain(value)
    ]


def _plain(value: Any) -> Any:
    """A setting as a file stores it, with lists for tuples."""
    return json.loads(json.dumps(value, default=str))
