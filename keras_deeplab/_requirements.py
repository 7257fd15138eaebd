"""Refuses Keras settings under which nothing in the package could work."""

from __future__ import annotations

import os

_NEEDED = (
    "keras_deeplab needs the TensorFlow backend of Keras (it trains on tf.data and exports "
    "SavedModels); it is {!r}. Set KERAS_BACKEND=tensorflow."
)


def check_backend() -> None:
    """Refuses other backends than TensorFlow, before Keras loads one that may be missing."""
    named = os.environ.get("KERAS_BACKEND") or "tensorflow"
    if named != "tensorflow":
        raise ImportError(_NEEDED.format(named))
    os.environ["KERAS_BACKEND"] = named  # whatever Keras' configuration file names
    import keras

    if keras.config.backend() != "tensorflow":  # Keras was imported before
        raise ImportError(_NEEDED.format(keras.config.backend()))
    check_data_format(ImportError)


def check_data_format(error: type[Exception] = ValueError) -> None:
    """Refuses a setting of Keras that may also be changed after the import."""
    import keras

    if keras.config.image_data_format() != "channels_last":
        raise error(
            "keras_deeplab works on images with the channels last; Keras' image_data_format is "
            f"{keras.config.image_data_format()!r}. Call "
            'keras.config.set_image_data_format("channels_last") first.'
        )


check_backend()
