"""U-Net."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers as kl

from keras_deeplab import graph
from keras_deeplab.backbones.contracting_path import contracting_path, two_convolutions
from keras_deeplab.layers import CropLike, ResizeLike
from keras_deeplab.models.arguments import InputShape
from keras_deeplab.models.backbone import last_layer_at
from keras_deeplab.models.base import SegmentationModel
from keras_deeplab.validation import error


@keras.saving.register_keras_serializable(package="keras_deeplab")
class UNet(SegmentationModel):
    """U-Net: a contracting path, and an expanding path that adds the features of every level.

    Without `backbone` it is the network of 2015, with padded convolutions for images of any size
    and pixels in [-1, 1]. Over a backbone, maps are resized to the skip's size, and the logits of
    the finest skip to the image's.

    Args:
        backbone: `None` for the network of 2015, or as in `SegmentationModel`.
        filters: Channels at the image's own stride; twice as many at each halving. `None` for 64,
            as in the paper, and 16 in the decoder over a backbone.
        depth: Number of skips: at the strides 1, 2, 4, ...; over a backbone at those of 2, 4, 8,
            ... that it has.
        skip_layers: Names of the layers whose outputs are the skips; `None` for those that
            `graph.find_feature_tap` finds at these strides.
        batch_norm: Whether batch norms follow the 3x3 convolutions; `None` for yes over a backbone
            and no without.
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
        if of_2015 and arguments["preprocessing"] == "auto":
            missing["preprocessing"] = "tf"
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
        coarsest, *strides = (max(found.stride) for found in graph.geometry(self.backbone).outputs)
        by_stride = {
            stride: skip for stride, skip in zip(strides, skips, strict=True) if stride < coarsest
        }
        count = config["depth"] if of_2015 else max(1, len(skips))
        if not len(by_stride) == len(skips) == count:
            rule = f"{count} layers of different strides, finer than the features' {coarsest}"
            raise error("skip_layers", rule, config["skip_layers"])
        if not of_2015:
            x = kl.Dropout(config["dropout"], name="dropout")(x)
        for stride in sorted(by_stride, reverse=True):
            skip, filters, level = by_stride[stride], config["filters"] * stride, f"decoder{stride}"
            if of_2015:
                options = {"kernel_initializer": "he_uniform", "name": f"{level}_up"}
                x = kl.Conv2DTranspose(filters, 2, 2, **options)(x)
                x = CropLike(name=f"{level}_crop")(x, skip)  # odd maps were pooled rounding up
            else:
                x = ResizeLike(name=f"{level}_up")(x, skip)
            x = kl.Concatenate(name=f"{level}_concat")([skip, x])
            x = two_convolutions(x, filters, level, config)
        logits = kl.Conv2D(config["num_classes"], 1, name="logits", dtype="float32")(x)
        return logits if of_2015 else self._upsampled(logits)
