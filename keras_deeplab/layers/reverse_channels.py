"""Channels in the opposite order."""

from __future__ import annotations

from typing import Any

import keras

from keras_deeplab.layers.traced import TracedLayer


@keras.saving.register_keras_serializable(package="keras_deeplab")
class ReverseChannels(TracedLayer):
    """Turns RGB into BGR, the order in which networks trained with Caffe take their pixels.

    Channels after the first three stay where they are.

    Example:

    >>> keras_deeplab.layers.ReverseChannels()(keras.ops.array([[[[1.0, 2.0, 3.0]]]])).numpy()
    array([[[[3., 2., 1.]]]], dtype=float32)
    """

    def call(self, x: Any) -> Any:
        if x.shape[-1] == 3:
            return keras.ops.flip(x, axis=-1)
        return keras.ops.concatenate([keras.ops.flip(x[..., :3], axis=-1), x[..., 3:]], axis=-1)
