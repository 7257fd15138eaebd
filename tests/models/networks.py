"""Small networks of a user's own, to stand behind a DeepLab."""

from __future__ import annotations

import keras
from keras import layers as kl


def tiny(channels: int = 3, size: tuple[int | None, int | None] = (None, None)) -> keras.Model:
    """Functional, stride 32, a residual unit; convolutions padded as Keras users do."""
    inputs = keras.Input((*size, channels), name="pixels")
    x = kl.Rescaling(1 / 255, name="scale")(inputs)
    x = kl.Conv2D(8, 3, strides=2, padding="same", activation="relu", name="stem")(x)
    x = kl.Conv2D(8, 3, strides=2, padding="same", name="stage4")(x)
    x = kl.BatchNormalization(name="stage4_norm")(x)
    x = shortcut = kl.ReLU(name="stage4_out")(x)
    for stride, width in ((8, 8), (16, 12), (32, 12)):
        x = kl.Conv2D(width, 3, strides=2, padding="same", name=f"stage{stride}")(x)
        x = kl.BatchNormalization(name=f"stage{stride}_norm")(x)
        x = shortcut = kl.ReLU(name=f"stage{stride}_out")(x)
        x = kl.Conv2D(width, 3, padding="same", activation="tanh", name=f"unit{stride}")(x)
        x = kl.Add(name=f"add{stride}")([shortcut, x])
    return keras.Model(inputs, x, name="tiny")


def tiny_sequential() -> keras.Sequential:
    """The plainest thing a user may have trained."""
    return keras.Sequential(
        [
            keras.Input((None, None, 3)),
            kl.Conv2D(6, 3, strides=4, padding="same", activation="relu", name="first"),
            kl.MaxPooling2D(2, name="pool"),
            kl.Conv2D(8, 3, padding="same", activation="relu", name="second"),
            kl.MaxPooling2D(2, name="pool2"),
            kl.Conv2D(8, 3, padding="same", activation="tanh", name="third"),
        ],
        name="plain",
    )
