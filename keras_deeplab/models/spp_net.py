"""SPP-net."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers as kl

from keras_deeplab.graph.network import functional, top_level_calls
from keras_deeplab.layers import SpatialPyramidPooling2D
from keras_deeplab.models.arguments import InputShape
from keras_deeplab.models.base import ImageModel


@keras.saving.register_keras_serializable(package="keras_deeplab")
class SPPNet(ImageModel):
    """SPP-net: a backbone, spatial pyramid pooling to a fixed length, dense layers.

    It classifies whole images. One set of dense layers serves images of every size: train it at
    several sizes in turn, as the paper does, and predict at any other.

    Args:
        levels: Bins per side of each level of the pyramid.
        dense: Widths of the dense layers in front of the predictor; `()` for none.
        dropout: Share of each dense layer's values dropped in training.
        pooling: How a bin is pooled: `"max"`, as in the paper, or `"average"`.
        replace_pooling: Whether the pyramid takes the place of the pooling that a backbone such as
            VGG16 ends in, as in the paper. False keeps that one in front of the pyramid: with one
            level of 7x7 averages this is the VGG16 of torchvision and keras.applications.

    The other arguments are those of `SegmentationModel`. The output is `(batch, num_classes)`:
    logits, float32.

    Example:

    >>> model = keras_deeplab.SPPNet(5, "mobilenet_v2", levels=(3, 2, 1), dense=(64,))
    >>> model(keras.ops.ones((2, 97, 129, 3))).shape
    TensorShape([2, 5])

    Reference:
        [He et al., 2014, SPP-net](https://arxiv.org/abs/1406.4729), section 2.2 and figure 3 (the
        layer), 2.3 (several sizes in turn), 3.1 (levels and dense layers).
    """

    def __init__(
        self,
        num_classes: int = 1000,
        backbone: str | keras.Model = "vgg16",
        *,
        levels: tuple[int, ...] = (6, 3, 2, 1),
        dense: tuple[int, ...] = (4096, 4096),
        dropout: float = 0.5,
        pooling: str = "max",
        replace_pooling: bool = True,
        backbone_options: dict[str, Any] | None = None,
        preprocessing: str | None = "auto",
        input_shape: InputShape | None = None,
        dtype: str | None = None,
        weights: Any = None,
        name: str = "spp_net",
    ) -> None:
        super().__init__(locals())

    def _network(self, arguments: dict[str, Any]) -> keras.Model:
        network = super()._network(arguments)
        return _without_last_pooling(network) if arguments["replace_pooling"] else network

    def _output(self, x: Any) -> Any:
        config = self._arguments
        levels, pooling = config["levels"], config["pooling"]
        x = SpatialPyramidPooling2D(levels, pooling, name="spatial_pyramid")(x)
        for index, width in enumerate(config["dense"], 1):
            x = kl.Dense(width, "relu", kernel_initializer="he_uniform", name=f"dense{index}")(x)
            x = kl.Dropout(config["dropout"], name=f"dense{index}_dropout")(x)
        return kl.Dense(config["num_classes"], name="logits", dtype="float32")(x)


def _without_last_pooling(network: keras.Model) -> keras.Model:
    """A network without the pooling (and its padding) that it may end in."""
    inputs, features = functional(network).inputs[0], functional(network).outputs[0]
    sources = {id(call.outputs[0]): call for call in top_level_calls(network)}
    for layers in (kl.MaxPooling2D | kl.AveragePooling2D, kl.ZeroPadding2D):
        call = sources.get(id(features))
        if call is None or not isinstance(call.operation, layers):
            break
        (features,) = call.inputs
    return keras.Model(inputs, features, name=network.name)
