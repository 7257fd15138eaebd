"""VGG16, and the form that DeepLab V1 and V2 gave it."""

from __future__ import annotations

import keras
from keras import layers as kl

from keras_deeplab.layers import Conv2D
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
        atrous: Whether this is the network of DeepLab V1 and V2, of output stride 8: the last two
            poolings lose their stride and are not dilated, and the fifth block has rate 2.
        pool_size: 2, as in both papers' texts, or 3, as in the networks that DeepLab released.
        pool_ceil: Whether 2x2 poolings round the size of an odd map up, as Caffe does; torchvision
            and keras.applications round down.

    The other arguments are those of `build`.

    Returns:
        A network to features `(batch, ceil(height / stride), ceil(width / stride), 512)`; rounded
        down without `pool_ceil`.

    Reference:
        [Simonyan and Zisserman, 2014](https://arxiv.org/abs/1409.1556), table 1, column D;
        [Chen et al., 2014, DeepLab V1](https://arxiv.org/abs/1412.7062), section 3.1.
    """
    one_of("pool_size", pool_size, (2, 3))
    x = inputs = keras.Input(input_shape, name="pixels")
    options = {"padding": "same", "activation": "relu", "kernel_initializer": "he_uniform"}
    for block, (filters, convolutions) in enumerate(BLOCKS, 1):
        options["dilation_rate"] = 2 if atrous and block == 5 else 1
        for index in range(1, convolutions + 1):
            x = Conv2D(filters, 3, **options, name=f"block{block}_conv{index}")(x)
        stride, name = 1 if atrous and block >= 4 else 2, f"block{block}_pool"
        padding = "same" if pool_ceil or stride == 1 else "valid"
        if pool_size == 3 and stride == 2:  # equal on both sides; values are not below the zeros
            x, padding = kl.ZeroPadding2D(1, name=f"{name}_pad")(x), "valid"
        x = kl.MaxPooling2D(pool_size, stride, padding=padding, name=name)(x)
    return keras.Model(inputs, x, name="vgg16")
