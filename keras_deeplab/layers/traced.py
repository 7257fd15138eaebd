"""Layers whose output shape Keras finds by running `call` on symbols."""

from __future__ import annotations

from typing import Any

import keras


class TracedLayer(keras.layers.Layer):
    """Base of layers of one input that compute with TensorFlow's operations.

    Keras traces `call` for a functional model, and asks `compute_output_shape` for wrappers such as
    `TimeDistributed`.
    """

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        # That of layers takes its shape from `compute_output_shape`, where it is defined.
        return keras.Operation.compute_output_spec(self, *args, **kwargs)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return self.compute_output_spec(keras.KerasTensor(input_shape, self.compute_dtype)).shape
