"""Whether the features of a network differ from pixel to pixel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_deeplab.graph.network import all_layers
from keras_deeplab.overfitting.one_batch import OneBatch
from keras_deeplab.overfitting.predictor import find_predictor

CONSTANT = 1e-6  # of the largest value, or of 1: a smaller deviation is rounding


@dataclass(frozen=True)
class Spread:
    """How much a map differs over pixels and images, in the channel where it does most."""

    deviation: float
    largest: float

    @property
    def is_constant(self) -> bool:
        """Whether all pixels are the same but for rounding."""
        return self.deviation <= CONSTANT * max(1.0, self.largest)


@dataclass(frozen=True)
class DeadLayer:
    """Where features died: what was looked at, and the first layer that gives a constant map."""

    shown: str
    path: str
    deviation: float


def first_dead_layer(one: OneBatch) -> DeadLayer | None:
    """Looks at the backbone's output, at what the predictor gets and at the logits.

    Measured in training mode, as the loss sees them. A predictor whose kernel starts at zero gives
    constant logits and still learns: it is not dead.

    Args:
        one: The model and its batch. Moving statistics are updated by this.

    Returns:
        The first layer whose output is the same everywhere, if one of those three is; else None.
    """
    seen: dict[str, Spread] = {}
    with watched(one.model, seen):
        outputs = one.model(one.images, training=True)
    last = find_predictor(one.model)
    looked_at = {"the backbone's output": "backbone"}
    if last is not None:
        looked_at["what the predictor gets"] = f"into {last.path}"
        kernels = [np.asarray(w) for w in last.operation.weights if len(w.shape) > 1]
        if not kernels or any(kernel.any() for kernel in kernels):
            looked_at["the logits' map"] = last.path
    del outputs
    for shown, path in looked_at.items():
        if path in seen and seen[path].is_constant:
            deviation = seen[path].deviation
            dead = next(p for p, s in seen.items() if s.is_constant and not p.startswith("into "))
            return DeadLayer(shown, dead, deviation)
    return None


@contextmanager
def watched(model: keras.Model, seen: dict[str, Spread]) -> Iterator[None]:
    """Inside, notes the spread of what each layer gives and, as "into PATH", what it gets."""
    layers = all_layers(model)
    try:
        for path, layer in layers.items():
            layer.call = _watched_call(layer.call, path, seen)
        yield
    finally:
        for layer in layers.values():
            layer.__dict__.pop("call", None)  # the class's own again


def _watched_call(
    call: Callable[..., Any], path: str, seen: dict[str, Spread]
) -> Callable[..., Any]:
    def noting(*args: Any, **kwargs: Any) -> Any:
        _note(f"into {path}", args[:1], seen)
        outputs = call(*args, **kwargs)
        _note(path, outputs, seen)
        return outputs

    return noting


def _note(name: str, values: Any, seen: dict[str, Spread]) -> None:
    maps = [value for value in keras.tree.flatten(values) if tf.is_tensor(value)]
    if maps and maps[0].shape.rank == 4 and maps[0].dtype.is_floating:
        x = tf.cast(maps[0], tf.float32)
        deviation = tf.reduce_max(tf.math.reduce_std(x, axis=(0, 1, 2)))
        seen.setdefault(name, Spread(float(deviation), float(tf.reduce_max(tf.abs(x)))))
