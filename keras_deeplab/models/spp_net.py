"""SPP-net."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers as kl

from keras_deeplab.graph.network import functional, top_level_calls
from keras_deeplab.layers import SpatialPyramidPooling2D
from keras_deeplab.models.arguments import InputShape
from keras_deeplab.models.backbone import built, with_feature_taps
from keras_deeplab.models.base import ImageModel


@keras.saving.register_keras_serializable(package="keras_deeplab")
class SPPNet(ImageModel):
    """SPP-net: a backbone, spatial pyramid pooling to a fixed length, dense layers.

    It classifies whole images. One set of dense layers serves images of every size, in training
    too: train it at several sizes in turn, as the paper does, and predict at any other.

    Spatial pyramid pooling replaces the last pooling, as in the paper: where a backbone ends in a
    pooling (VGG16), that layer is left out and its input is pooled; AlexNet here ends before it.

    Args:
        num_classes: Number of classes, an integer of at least 2; by default those of ImageNet.
        backbone: As in `SegmentationModel`. It keeps its own output stride.
        levels: Bins per side of each level of the pyramid.
        dense: Widths of the dense layers in front of the predictor; `()` for none.
        dropout: Share of each dense layer's values dropped in training.
        pooling: How a bin is pooled: `"max"`, as in the paper, or `"average"`.
        replace_pooling: Whether the pyramid takes the place of the pooling that a backbone ends in.
            False keeps that one in front of the pyramid: with one level of 7x7 averages this is
            the VGG16 of torchvision and keras.applications.

    The other arguments are those of `SegmentationModel`.

    Output shape:
        `(batch, num_classes)`: logits, float32.

    Example:

    >>> model = keras_deeplab.SPPNet(5, "mobilenet_v2", levels=(3, 2, 1), dense=(64,))
    >>> model(keras.ops.ones((2, 97, 129, 3))).shape
    TensorShape([2, 5])

    Reference:
        [He et al., 2014, Spatial Pyramid Pooling in Deep Convolutional Networks for Visual
        Recognition](https://arxiv.org/abs/1406.4729), section 2.2 and figure 3 (the layer), 2.3
        (several sizes in turn), 3.1 (levels and dense layers).
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

    def _backbone(self, arguments: dict[str, Any]) -> tuple[keras.Model, dict[str, Any]]:
        network = built(arguments)
        features = _last_map(network) if arguments["replace_pooling"] else None
        return with_feature_taps(network, arguments, features)

    def _output(self, x: Any) -> Any:
        config = self._arguments
        levels, pooling = config["levels"], config["pooling"]
        x = SpatialPyramidPooling2D(levels, pooling, name="spatial_pyramid")(x)
        for index, width in enumerate(config["dense"], 1):
            x = kl.Dense(width, "relu", kernel_initializer="he_uniform", name=f"dense{index}")(x)
            x = kl.Dropout(config["dropout"], name=f"dense{index}_dropout")(x)
        return kl.Dense(config["num_classes"], name="logits", dtype="float32")(x)


def _last_map(network: keras.Model) -> keras.KerasTensor:
    """What a network returns, without the pooling (and its padding) that it may end in."""
    tensor = functional(network).outputs[0]
    sources = {id(call.outputs[0]): call for call in top_level_calls(network)}
    for layers in (kl.MaxPooling2D | kl.AveragePooling2D, kl.ZeroPadding2D):
        call = sources.get(id(tensor))
        if call is None or not isinstance(call.operation, layers):
            break
        (tensor,) = call.inputs
    return tensor
