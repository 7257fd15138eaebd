"""Layer calls, observed or replaced while a model runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras


@contextmanager
def intercepted_calls(
    layers: Mapping[str, keras.layers.Layer], around: Callable[..., Any]
) -> Iterator[None]:
    """Replaces the `call` of layers by `around(path, call, *args, **kwargs)` inside the context.

    Args:
        layers: Layers by path, as of `graph.network.all_layers`.
        around: Returns the outputs of the layer at `path`; `call` is the layer's own method.
    """
    try:
        for path, layer in layers.items():
            layer.call = functools.partial(around, path, layer.call)
        yield
    finally:
        for layer in layers.values():
            vars(layer).pop("call", None)
