"""VGG16, and the form that DeepLab V1 and V2 gave it."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers as kl

from keras_deeplab.validation import one_of

# Channels and convolutions of each block.
BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


def vgg16(
    input_shape: tuple[int | None, int | None, int] = (None, None, 3),
    *,
    atrous: bool = False,
    pool_size: int = 2,
    pool_ceil: bool = True,
) -> keras.Model:
    """Builds VGG16 without its dense layers.

    Args:
        input_shape: (height, width, channels) without the batch, None for any size.
        atrous: False for the classifier's network, of output stride 32; True for the network of
            DeepLab V1 and V2, of output stride 8: the last two poolings keep their windows, lose
            their stride and are not dilated, and the fifth block has rate 2.
        pool_size: 2, as in both papers' texts, or 3, as in the networks that DeepLab released.
        pool_ceil: Whether 2x2 poolings round the size of an odd map up, as Caffe does; torchvision
            and keras.applications round down.

    Returns:
        A functional model from scaled pixels `(batch, height, width, channels)` to features
        `(batch, ceil(height / stride), ceil(width / stride), 512)`; rounded down without
        `pool_ceil`.

    Raises:
        ValueError: If `pool_size` is neither 2 nor 3.

    Reference:
        [Simonyan and Zisserman, 2014](https://arxiv.org/abs/1409.1556), table 1, column D;
        [Chen et al., 2014, DeepLab V1](https://arxiv.org/abs/1412.7062), section 3.1.
    """
    one_of("pool_size", pool_size, (2, 3))
    x = inputs = keras.Input(input_shape, name="pixels")
    for block, (filters, convolutions) in enumerate(BLOCKS, 1):
        for index in range(1, convolutions + 1):
            x = kl.Conv2D(
                filters,
                3,
                padding="same",
                dilation_rate=2 if atrous and block == 5 else 1,
                activation="relu",
                kernel_initializer="he_normal",
                name=f"block{block}_conv{index}",
            )(x)
        stride = 1 if atrous and block >= 4 else 2
        x = _pool(x, pool_size, stride, f"block{block}_pool", pool_ceil)
    return keras.Model(inputs, x, name="vgg16")


def _pool(x: Any, size: int, stride: int, name: str, ceil: bool) -> Any:
    if size == 3 and stride == 2:  # equal on both sides; behind a ReLU zeros change no maximum
        x = kl.ZeroPadding2D(1, name=f"{name}_pad")(x)
        return kl.MaxPooling2D(size, stride, name=name)(x)
    padding = "same" if ceil or stride == 1 else "valid"
    return kl.MaxPooling2D(size, stride, padding=padding, name=name)(x)
