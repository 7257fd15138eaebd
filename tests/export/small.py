"""A small segmentation model, and images for it."""

from __future__ import annotations

import io

import keras
import numpy as np
import tensorflow as tf
from calibration import calibrate, image
from PIL import Image

import keras_deeplab


def small_model(classes=5, shape=(None, None, 3), policy="float32", dtype=None):
    """A strided network with batch norm and dropout whose weights and statistics are random."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape, dtype=dtype)
    x = keras.layers.Rescaling(1 / 127.5, -1.0, dtype=policy)(inputs)
    x = keras.layers.Conv2D(8, 3, strides=4, padding="same", dtype=policy, name="conv")(x)
    x = keras.layers.BatchNormalization(dtype=policy)(x)
    x = keras.layers.Dropout(0.5, dtype=policy)(keras.layers.ReLU(dtype=policy)(x))
    x = keras.layers.Conv2D(classes, 1, dtype=policy, name="head")(x)
    model = keras.Model(inputs, keras_deeplab.layers.ResizeLike(dtype="float32")(x, inputs))
    return calibrate(model, image(shape[0] or 33, shape[1] or 33, channels=shape[2]))


def pictures(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def expected(model, images):
    return tf.nn.softmax(model(images)).numpy()


def encoded(array, kind="PNG", mode=None, **options):
    file = io.BytesIO()
    Image.fromarray(array).convert(mode).save(file, kind, **options)
    return file.getvalue()
