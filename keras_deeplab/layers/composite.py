"""Layers that are made of Keras layers."""

from __future__ import annotations

from typing import Any

import keras


class CompositeLayer(keras.layers.Layer):
    """Base of the layers whose `call` only calls other Keras layers.

    That rule lets `keras_deeplab.graph` look inside: it calls the layer on symbolic tensors and
    reads the geometry from the layers it meets. A user's own composite layer that derives from
    this class is understood in the same way.
    """

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Builds the layers inside by calling them on a symbolic tensor."""
        self.call(keras.Input(batch_shape=input_shape, dtype=self.compute_dtype))
        self.built = True

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The shape that the layers inside give."""
        return self.call(keras.Input(batch_shape=input_shape, dtype=self.compute_dtype)).shape

    def dilated_config(self, rate: tuple[int, int]) -> dict[str, Any]:
        """The layer's configuration for a map that is `rate` times finer.

        Args:
            rate: Factors for height and width, by which every kernel larger than 1 is dilated.

        Returns:
            A dict for `from_config`. The weights of both layers have the same shapes.
        """
        raise ValueError(
            f"The layer '{self.name}' ({type(self).__name__}) does not say how it is dilated by "
            f"{rate}: define dilated_config."
        )
