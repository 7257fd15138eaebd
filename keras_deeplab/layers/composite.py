"""Layers that are made of Keras layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import keras

from keras_deeplab.layers.batch_norm import BatchNormalization


class CompositeLayer(keras.layers.Layer):
    """Base of the layers whose `call` only calls other Keras layers.

    This allows `keras_deeplab.graph` to trace the layer on symbolic tensors and to read the
    geometry of its sublayers. Composite layers of users can derive from this class.
    """

    _graph: keras.Model | None = None

    def graph(self, *input_shapes: tuple[int | None, ...]) -> keras.Model:
        """The layers inside as a functional model, for inputs of these shapes with the batch."""
        if self._graph is None or [x.shape for x in self._graph.inputs] != list(input_shapes):
            inputs = [keras.Input(batch_shape=s, dtype=self.compute_dtype) for s in input_shapes]
            graph = keras.Model(inputs, self.call(*inputs), name=self.name)
            # Past Keras' tracking, which would take it for one more layer inside.
            object.__setattr__(self, "_graph", graph)
        return self._graph

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Builds the layers inside."""
        self.graph(tuple(input_shape))
        self.built = True

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The shape that the layers inside give."""
        return self.graph(tuple(input_shape)).outputs[0].shape

    def get_config(self) -> dict[str, Any]:
        """Keras' configuration, and what was changed on the layers inside after construction."""
        changes = changed_settings(all_layers(self))
        return {**super().get_config(), **{key: value for key, value in changes.items() if value}}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Builds the layer that `get_config` describes."""
        config = dict(config)
        changes = taken_settings(config)
        layer = super().from_config(config)
        change_settings(all_layers(layer), changes)
        return layer

    def dilated_config(self, rate: tuple[int, int]) -> dict[str, Any]:
        """The layer's configuration for a map that is `rate` times finer.

        Args:
            rate: Factors for height and width, by which every kernel larger than 1 is dilated.

        Returns:
            A dict for `from_config`. The weights of both layers have the same shapes.
        """
        raise ValueError(
            f"`dilated_config` must be defined by {type(self).__name__} to dilate the layer "
            f"'{self.name}'. Received: rate={rate}"
        )


def all_layers(layer: keras.layers.Layer, prefix: str = "") -> dict[str, keras.layers.Layer]:
    """All layers inside a layer or model by path, each before those inside it."""
    found: dict[str, keras.layers.Layer] = {}
    for inner in layer._flatten_layers(include_self=False, recursive=False):
        found[prefix + inner.name] = inner
        found.update(all_layers(inner, f"{prefix}{inner.name}/"))
    return found


def changed_settings(layers: Mapping[str, keras.layers.Layer]) -> dict[str, Any]:
    """Which layers are frozen and which settings of batch norms were changed, by path."""
    norms = {
        path: layer.changed_settings
        for path, layer in layers.items()
        if isinstance(layer, BatchNormalization) and layer.changed_settings
    }
    frozen = [path for path, layer in layers.items() if not layer.trainable]
    return {"frozen_layers": frozen, "norm_settings": norms}


def taken_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Takes what `changed_settings` returned out of a configuration."""
    defaults = {"frozen_layers": [], "norm_settings": {}}
    return {key: config.pop(key, default) for key, default in defaults.items()}


def change_settings(layers: Mapping[str, keras.layers.Layer], changes: dict[str, Any]) -> None:
    """Applies to layers what `changed_settings` has found."""
    frozen = set(changes["frozen_layers"])
    for path, layer in layers.items():
        layer.trainable = path not in frozen
    for path, settings in changes["norm_settings"].items():
        for name, value in settings.items():
            setattr(layers[path], name, value)
