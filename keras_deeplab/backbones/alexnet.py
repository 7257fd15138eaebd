"""AlexNet, in its form of one tower."""

from __future__ import annotations

import keras
from keras import layers as kl

# Name, filters, kernel size, stride, padding of each layer; a pooling has no filters.
LAYERS = (
    ("conv1", 64, 11, 4, 2),
    ("pool1", None, 3, 2, 0),
    ("conv2", 192, 5, 1, 2),
    ("pool2", None, 3, 2, 0),
    ("conv3", 384, 3, 1, 1),
    ("conv4", 256, 3, 1, 1),
    ("conv5", 256, 3, 1, 1),
)


def alexnet(input_shape: tuple[int | None, int | None, int] = (None, None, 3)) -> keras.Model:
    """Builds the convolutions of AlexNet, at their own output stride of 16.

    The layout is that of Krizhevsky's single tower of 2014 as his own code and torchvision have it:
    64, 192, 384, 256 and 256 channels (the paper's footnote says 384 for the fourth), no groups and
    no local response normalisation. The last pooling is left out: spatial pyramid pooling takes its
    place. Images must have at least 31 x 31 pixels.

    The other arguments are those of `build`.

    Returns:
        A network to features `(batch, (height - 15) // 16, (width - 15) // 16, 256)`.

    Reference:
        [Krizhevsky, 2014, One weird trick for parallelizing convolutional neural
        networks](https://arxiv.org/abs/1404.5997), section 5, footnote 1.
    """
    x = inputs = keras.Input(input_shape, name="pixels")
    for name, filters, kernel_size, stride, padding in LAYERS:
        if filters is None:
            x = kl.MaxPooling2D(kernel_size, stride, name=name)(x)
            continue
        if stride > 1:
            x = kl.ZeroPadding2D(padding, name=f"{name}_pad")(x)
        mode = "valid" if stride > 1 else "same"
        options = {"activation": "relu", "kernel_initializer": "he_uniform", "name": name}
        x = kl.Conv2D(filters, kernel_size, stride, mode, **options)(x)
    return keras.Model(inputs, x, name="alexnet")
