"""Refuses Keras settings under which nothing in the package could work."""

from __future__ import annotations

import os


def check_backend() -> None:
    """Refuses other backends than TensorFlow, before Keras loads one that may be missing."""
    named = os.environ.get("KERAS_BACKEND")
    if named not in (None, "", "tensorflow"):
        raise ImportError(
            "keras_deeplab needs the TensorFlow backend of Keras (it trains on tf.data and exports "
            f"SavedModels); KERAS_BACKEND is {named!r}. Set KERAS_BACKEND=tensorflow."
        )
    import keras

    if keras.config.backend() != "tensorflow":
        raise ImportError(
            "keras_deeplab needs the TensorFlow backend of Keras; Keras' configuration file sets "
            f"{keras.config.backend()!r}. Set KERAS_BACKEND=tensorflow."
        )
    if keras.config.image_data_format() != "channels_last":
        raise ImportError(
            "keras_deeplab works on images with the channels last; Keras' image_data_format is "
            f"{keras.config.image_data_format()!r}. Call "
            'keras.config.set_image_data_format("channels_last") first.'
        )


check_backend()
