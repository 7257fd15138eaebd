"""U-Net."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers as kl

from keras_deeplab import graph
from keras_deeplab.backbones.contracting_path import contracting_path, two_convolutions, up_conv
from keras_deeplab.layers import ResizeLike
from keras_deeplab.models.arguments import InputShape
from keras_deeplab.models.backbone import last_layer_at
from keras_deeplab.models.base import SegmentationModel


@keras.saving.register_keras_serializable(package="keras_deeplab")
class UNet(SegmentationModel):
    """U-Net: a contracting path, and an expanding path that adds the features of every level.

    Without `backbone` it is the network of 2015, with padded convolutions for images of any size
    and pixels in [-1, 1]. Over a backbone, maps are resized to the skip's size, and the logits of
    the finest skip to the image's.

    Args:
        backbone: `None` for the network of 2015, or as in `SegmentationModel`.
        filters: Channels at stride 1, doubled at each halving; `None` for 64, 16 over a backbone.
        depth: Number of skips: at strides 1, 2, 4, ..., over a backbone at its 2, 4, 8, ...
        skip_layers: Names of their layers; `None` for those that `graph.find_feature_tap` finds.
        batch_norm: Whether the 3x3 convolutions have batch norms; `None` for only over a backbone.
        dropout: Share of values dropped in training on the last two levels of the network of 2015,
            or of a backbone's coarsest features.

    The other arguments are those of `SegmentationModel`.

    Example:

    >>> model = keras_deeplab.UNet(num_classes=2, filters=8, input_shape=(None, None, 1))
    >>> model(keras.ops.ones((1, 97, 129, 1))).shape
    TensorShape([1, 97, 129, 2])

    Reference:
        [Ronneberger et al., 2015](https://arxiv.org/abs/1505.04597), section 2, figure 1.
    """

    def __init__(
        self,
        num_classes: int = 21,
        backbone: str | keras.Model | None = None,
        *,
        filters: int | None = None,
        depth: int = 4,
        skip_layers: tuple[str, ...] | None = None,
        backbone_options: dict[str, Any] | None = None,
        batch_norm: bool | None = None,
        dropout: float = 0.5,
        activation: Any = "relu",
        preprocessing: str | None = "auto",
        input_shape: InputShape | None = None,
        dtype: str | None = None,
        weights: Any = None,
        name: str = "unet",
    ) -> None:
        super().__init__(locals())

    def _with_defaults(self, arguments: dict[str, Any]) -> dict[str, Any]:
        of_2015 = arguments["backbone"] is None
        defaults = {"filters": 64 if of_2015 else 16, "batch_norm": not of_2015}
        missing = {key: value for key, value in defaults.items() if arguments[key] is None}
        return {**arguments, **missing}

    def _network(self, arguments: dict[str, Any]) -> keras.Model:
        of_2015 = arguments["backbone"] is None
        return contracting_path(arguments) if of_2015 else super()._network(arguments)

    def _feature_taps(self, network: keras.Model, arguments: dict[str, Any]) -> dict[str, Any]:
        if arguments["skip_layers"] is not None:
            return {"skip_layers": arguments["skip_layers"]}
        finest = 1 if arguments["backbone"] is None else 2
        coarsest = graph.geometry(network).output.stride[0] or 0
        strides = (finest * 2**level for level in range(arguments["depth"]))
        found = [last_layer_at(network, stride) for stride in strides if stride < coarsest]
        return {"skip_layers": tuple(name for name in found if name is not None)}

    def _output(self, x: Any, *skips: Any) -> Any:
        config, of_2015 = self._arguments, self._arguments["backbone"] is None
        if not of_2015:
            x = kl.Dropout(config["dropout"], name="dropout")(x)
        strides = [max(found.stride) for found in graph.geometry(self.backbone).outputs[1:]]
        for stride, skip in sorted(zip(strides, skips, strict=True), reverse=True):
            filters, level = config["filters"] * stride, f"decoder{stride}"
            if of_2015:
                x = up_conv(x, skip, filters, level)
            else:
                x = ResizeLike(name=f"{level}_up")(x, skip)
            x = kl.Concatenate(name=f"{level}_concat")([skip, x])
            x = two_convolutions(x, filters, level, config)
        logits = kl.Conv2D(self.num_classes, 1, name="logits", dtype="float32")(x)
        return logits if of_2015 else self._upsampled(logits)
