"""Layers that are made of Keras layers."""

from __future__ import annotations

import logging
import re
from typing import Any, Self

import keras
from keras import layers as kl

from keras_deeplab.layers.batch_norm import BatchNormalization

logger = logging.getLogger(__name__)

_NEW_WORD = re.compile("(?<=.)(?=[A-Z][a-z])|(?<=[a-z])(?=[A-Z])")  # in a class' name, as Keras


class CompositeLayer(keras.layers.Layer):
    """Base of the layers of one input whose `call` only calls other Keras layers.

    `keras_deeplab.graph` can read the geometry of the layers inside. Users can derive from it.
    """

    _graph: keras.Model | None = None

    def graph(self, input_shape: tuple[int | None, ...]) -> keras.Model:
        """The layers inside as a functional model, for an input of this shape with the batch."""
        if self._graph is None or self._graph.inputs[0].shape != input_shape:
            inputs = keras.Input(batch_shape=input_shape, dtype=self.compute_dtype)
            graph = keras.Model(inputs, self.call(inputs), name=self.name)
            # Past Keras' tracking, which would take it for one more layer inside.
            object.__setattr__(self, "_graph", graph)
        return self._graph

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.graph(tuple(input_shape))
        self.built = True

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return self.graph(tuple(input_shape)).outputs[0].shape

    def get_config(self) -> dict[str, Any]:
        changes = changed_settings(self)
        return {**super().get_config(), **{key: value for key, value in changes.items() if value}}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        config, changes = without_settings(config)
        layer = super().from_config(config)
        change_settings(layer, changes)
        return layer

    def dilated_config(self, rate: tuple[int, int]) -> dict[str, Any]:
        """The configuration, for `from_config`, of the layer on a map that is `rate` times finer.

        Every kernel larger than 1 is dilated by these factors for height and width; the weights
        keep their shapes.
        """
        raise ValueError(
            f"`dilated_config` must be defined by {type(self).__name__} to dilate the layer "
            f"'{self.name}'. Received: rate={rate}"
        )


def all_layers(
    layer: keras.layers.Layer, prefix: str = "", made_by_layer: bool = False
) -> dict[str, keras.layers.Layer]:
    """All layers inside a layer or model by path, each before those inside it.

    Parts of a user's own layer or model class, and the layers of networks among these
    (`made_by_layer`), whose names Keras has numbered, which differ in every copy, are numbered by
    their place in it.
    """
    found: dict[str, keras.layers.Layer] = {}
    is_own = type(layer).__module__.startswith(f"{__package__}.")
    is_graph = isinstance(layer, keras.Sequential) or getattr(layer, "inputs", None)
    in_graph = set(map(id, layer.layers)) if is_graph and not made_by_layer else ()
    place = -1
    for inner in layer._flatten_layers(include_self=False, recursive=False):
        name = inner.name
        place += not isinstance(inner, kl.InputLayer)  # a `Sequential` has one when it is built
        is_numbered = not is_own and id(inner) not in in_graph
        if is_numbered:
            own = _NEW_WORD.sub("_", type(inner).__name__).lower()
            name = f"{own}_{place}" if re.fullmatch(rf"{own}(_\d+)?", name) else name
            while prefix + name in found:  # which another part was given as its name
                name += "_"
        found[prefix + name] = inner
        found.update(all_layers(inner, f"{prefix}{name}/", is_numbered))
    return found


def changed_settings(layer: keras.layers.Layer) -> dict[str, Any]:
    """Which layers inside are frozen and which settings of batch norms were changed, by path."""
    layers = all_layers(layer)
    norms = {path: each for path, each in layers.items() if isinstance(each, BatchNormalization)}
    changed = {path: each.changed_settings for path, each in norms.items()}
    return {
        "frozen_layers": [
            path
            for path, each in layers.items()
            if not each.trainable and not isinstance(each, kl.InputLayer)
        ],
        "norm_settings": {path: settings for path, settings in changed.items() if settings},
    }


def without_settings(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A configuration without what `changed_settings` added, and that."""
    changes = {"frozen_layers": [], "norm_settings": {}}
    own = {key: value for key, value in config.items() if key not in changes}
    return own, {key: config.get(key, default) for key, default in changes.items()}


def change_settings(layer: keras.layers.Layer, changes: dict[str, Any]) -> None:
    """Applies what `changed_settings` has found to the layers inside."""
    layers = all_layers(layer)
    text = f"The configuration of '{layer.name}' has settings of layers that it does not have: "
    advice = ". Define its classes as they were when it was saved."
    if unknown := sorted(changes["norm_settings"].keys() - layers.keys()):
        raise ValueError(f"{text}{', '.join(unknown)}{advice}")
    if unknown := sorted(set(changes["frozen_layers"]) - layers.keys()):
        logger.warning("%s%s, frozen%s", text, ", ".join(unknown), advice)
    for path, each in layers.items():
        each.trainable = path not in changes["frozen_layers"]
    for path, settings in changes["norm_settings"].items():
        for name, value in settings.items():
            setattr(layers[path], name, value)
