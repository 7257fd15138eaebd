"""Small networks of a user's own, and each model on one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import keras
import pytest
import tensorflow as tf
from calibration import calibrate, image
from keras import layers as kl

from keras_deeplab import DeepLabV1, DeepLabV2, DeepLabV3, DeepLabV3Plus, SPPNet, UNet


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


PLUS = {"aspp_filters": 8, "decoder_filters": 8}
SMALL = {
    "v1": (DeepLabV1, {"head_filters": 16}),
    "v2": (DeepLabV2, {}),
    "v2_branches": (DeepLabV2, {"head_filters": 8, "aspp_rates": (2, 4)}),
    "v3": (DeepLabV3, {"aspp_filters": 8, "head_filters": 8}),
    "v3_auxiliary": (
        DeepLabV3,
        {"aspp_filters": 8, "head_filters": 8, "auxiliary_layer": "stage16_out"},
    ),
    "v3_plus": (DeepLabV3Plus, PLUS),
    "v3_detail": (
        DeepLabV3Plus,
        {**PLUS, "detail_layer": "auto", "detail_filters": 6, "separable": True},
    ),
    "unet": (UNet, {"filters": 4, "depth": 2, "backbone": None}),
    "unet_over": (UNet, {"filters": 4}),
    "spp": (SPPNet, {"levels": (3, 2, 1), "dense": (12, 10)}),
}


def small(name: str, **more) -> keras.Model:
    """A model of three classes."""
    model_class, arguments = SMALL[name]
    channels = more.get("input_shape", (None, None, 3))[2]
    return model_class(3, **{"backbone": tiny(channels), **arguments, **more})


@cache
def calibrated(name: str) -> keras.Model:
    """The one such model that all tests share, which leave it as it is."""
    return calibrate(small(name), image(64, 64, batch=2))


@contextmanager
def zero_kernels() -> Iterator[None]:
    """Networks of published size are built faster, as most of the time goes into random kernels."""

    def zeros(self, shape: tuple[int, ...], dtype: str | None = None, **_) -> tf.Tensor:
        return tf.zeros(shape, dtype)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("HeUniform", "GlorotUniform", "RandomNormal"):
            patch.setattr(getattr(keras.initializers, name), "__call__", zeros)
        yield
