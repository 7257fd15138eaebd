"""Atrous spatial pyramid pooling, in the form of DeepLabV3."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers as kl

from keras_deeplab.layers.atrous_conv import AtrousConv2D, AtrousSeparableConv2D
from keras_deeplab.layers.composite import CompositeLayer
from keras_deeplab.layers.resize import ResizeLike
from keras_deeplab.validation import error, fraction, pair


@keras.saving.register_keras_serializable(package="keras_deeplab")
class ImagePooling(CompositeLayer):
    """Image-level features: global average pooling, 1x1 convolution, broadcast to every pixel.

    The output, `(batch, height, width, filters)`, has the same vector at every pixel.

    Args:
        filters: Number of output channels.
        activation: Name or function, applied after the batch norm. `None` for none.
        epsilon, momentum: Of the batch norm.

    Example:

    >>> keras_deeplab.layers.ImagePooling(256)(keras.random.normal((2, 33, 17, 64))).shape
    TensorShape([2, 33, 17, 256])

    Reference:
        [Chen et al., 2017, DeepLabV3](https://arxiv.org/abs/1706.05587), section 3.3; after
        [Liu et al., 2015, ParseNet](https://arxiv.org/abs/1506.04579).
    """

    def __init__(
        self,
        filters: int,
        activation: Any = "relu",
        epsilon: float = 1e-5,
        momentum: float = 0.9,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.pool = kl.GlobalAveragePooling2D(keepdims=True, name="pool", dtype=policy)
        options = {"activation": activation, "epsilon": epsilon, "momentum": momentum}
        self.conv = AtrousConv2D(filters, 1, **options, name="conv", dtype=policy)
        self.broadcast = ResizeLike(name="broadcast", dtype=policy)

    def call(self, x: Any) -> Any:
        return self.broadcast(self.conv(self.pool(x)), x)

    def dilated_config(self, rate: tuple[int, int]) -> dict[str, Any]:  # noqa: ARG002
        """The same configuration: a mean over a finer map is still one mean."""
        return self.get_config()

    def get_config(self) -> dict[str, Any]:
        conv = self.conv.get_config()
        names = ("filters", "activation", "epsilon", "momentum")
        return {**super().get_config(), **{name: conv[name] for name in names}}


@keras.saving.register_keras_serializable(package="keras_deeplab")
class ASPP(CompositeLayer):
    """Atrous spatial pyramid pooling: parallel atrous convolutions with different rates.

    A 1x1 convolution, one 3x3 atrous convolution per rate and image pooling, all of `filters`
    channels, are concatenated in this order and projected by a 1x1 convolution. Every convolution
    has batch norm and activation. The input is `(batch, height, width, channels)`, float.

    Args:
        filters: Channels of each branch and of the output.
        rates: Rates of the 3x3 branches in pixels of this map, each an integer or two for height
            and width: `(6, 12, 18)` belongs to output stride 16, `(12, 24, 36)` to 8.
        separable: Whether the 3x3 branches are depthwise separable, as in DeepLabV3+.
        image_pooling: Whether there is an image pooling branch.
        dropout: Share of the output's values dropped in training.
        activation, epsilon, momentum: As of `AtrousConv2D`.

    Raises:
        ValueError: If a rate is not a positive integer (or two), or `dropout` is not in [0, 1).

    Example:

    >>> keras_deeplab.layers.ASPP(64, rates=(2, 4, 6))(keras.ops.ones((1, 9, 17, 32))).shape
    TensorShape([1, 9, 17, 64])

    Reference:
        [Chen et al., 2017, DeepLabV3](https://arxiv.org/abs/1706.05587), section 3.3 and figure 5.
    """

    def __init__(
        self,
        filters: int = 256,
        rates: tuple[int, ...] = (6, 12, 18),
        separable: bool = False,
        image_pooling: bool = True,
        dropout: float = 0.1,
        activation: Any = "relu",
        epsilon: float = 1e-5,
        momentum: float = 0.9,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not isinstance(rates, list | tuple):
            raise error("rates", "a tuple of rates", rates)
        self.rates = tuple(pair("rates", rate) for rate in rates)
        self.filters = filters
        self.separable = separable
        self.image_pooling = image_pooling
        self.dropout = fraction("dropout", dropout, below_one=True)
        self.activation = keras.activations.get(activation)
        self.epsilon = epsilon
        self.momentum = momentum
        shared = {"activation": self.activation, "epsilon": epsilon, "momentum": momentum}
        shared["dtype"] = self.dtype_policy
        conv = AtrousSeparableConv2D if separable else AtrousConv2D
        self.branches = [AtrousConv2D(filters, 1, name="conv_1x1", **shared)]
        self.branches += [
            conv(filters, 3, dilation_rate=rate, name=f"atrous_{index}", **shared)
            for index, rate in enumerate(self.rates)
        ]
        if image_pooling:
            self.branches.append(ImagePooling(filters, name="image_pooling", **shared))
        for branch in self.branches:
            # TensorFlow's checkpoints follow attributes, but not the lists of a Keras layer.
            setattr(self, f"tracked_{branch.name}", branch)
        self.concat = kl.Concatenate(name="concat", dtype=self.dtype_policy)
        self.project = AtrousConv2D(filters, 1, name="project", **shared)
        self.drop = kl.Dropout(dropout, name="drop", dtype=self.dtype_policy)

    def call(self, x: Any) -> Any:
        parts = [branch(x) for branch in self.branches]
        x = self.concat(parts) if len(parts) > 1 else parts[0]
        return self.drop(self.project(x))

    def dilated_config(self, rate: tuple[int, int]) -> dict[str, Any]:
        """The configuration with every rate multiplied."""
        rates = tuple((height * rate[0], width * rate[1]) for height, width in self.rates)
        return {**self.get_config(), "rates": rates}

    def get_config(self) -> dict[str, Any]:
        names = "filters rates separable image_pooling dropout epsilon momentum".split()
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in names},
            "activation": keras.activations.serialize(self.activation),
        }
