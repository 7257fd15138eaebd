"""The auxiliary head of torchvision's models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
from keras import layers as kl

from keras_deeplab.layers import BatchNormalization

# As in torchvision, whatever the main head's is.
_DROPOUT = 0.1


def fcn_head(channels: int, arguments: Mapping[str, Any]) -> keras.Model:
    """Builds torchvision's FCNHead: a 3x3 convolution to a quarter of the channels, a predictor."""
    x = inputs = keras.Input((None, None, channels), name="features")
    options = {"use_bias": False, "kernel_initializer": "he_uniform", "name": "conv"}
    x = kl.Conv2D(max(1, channels // 4), 3, padding="same", **options)(x)
    x = BatchNormalization(epsilon=arguments["epsilon"], momentum=0.9, name="norm")(x)
    x = kl.Activation(arguments["activation"], name="act")(x)
    x = kl.Dropout(_DROPOUT, name="dropout")(x)
    x = kl.Conv2D(arguments["num_classes"], 1, name="logits", dtype="float32")(x)
    return keras.Model(inputs, x, name="auxiliary")
