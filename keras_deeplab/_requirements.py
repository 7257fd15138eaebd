"""Refuses Keras settings under which nothing in the package could work."""

from __future__ import annotations

import json
import os


def check_backend() -> None:
    """Refuses other backends than TensorFlow, before Keras loads one that may be missing."""
    named = os.environ.get("KERAS_BACKEND")
    if named not in (None, "", "tensorflow"):
        raise ImportError(
            "keras_deeplab needs the TensorFlow backend of Keras (it trains on tf.data and exports "
            f"SavedModels); KERAS_BACKEND is {named!r}. Set KERAS_BACKEND=tensorflow."
        )
    try:
        import keras
    except ModuleNotFoundError as error:
        # Keras' configuration file may name a backend that is not installed.
        configured = _configured_backend()
        if configured in (None, "tensorflow"):
            raise
        raise ImportError(_configured_error(configured)) from error
    if keras.config.backend() != "tensorflow":
        raise ImportError(_configured_error(keras.config.backend()))
    if keras.config.image_data_format() != "channels_last":
        raise ImportError(
            "keras_deeplab works on images with the channels last; Keras' image_data_format is "
            f"{keras.config.image_data_format()!r}. Call "
            'keras.config.set_image_data_format("channels_last") first.'
        )


def _configured_error(backend: str) -> str:
    return (
        "keras_deeplab needs the TensorFlow backend of Keras; Keras' configuration file sets "
        f"{backend!r}. Set KERAS_BACKEND=tensorflow."
    )


def _configured_backend() -> str | None:
    """The backend in Keras' configuration file, read as Keras reads it."""
    home = os.environ.get("KERAS_HOME") or os.path.join(os.path.expanduser("~"), ".keras")
    try:
        with open(os.path.join(home, "keras.json")) as file:
            return json.load(file).get("backend")
    except (OSError, ValueError):
        return None


check_backend()
