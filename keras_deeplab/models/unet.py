"""U-Net."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers as kl

from keras_deeplab import graph
from keras_deeplab.layers import AtrousConv2D, CropLike, ResizeLike
from keras_deeplab.models.arguments import InputShape
from keras_deeplab.models.backbone import built, last_layer_at, with_feature_taps
from keras_deeplab.models.base import SegmentationModel
from keras_deeplab.validation import error


@keras.saving.register_keras_serializable(package="keras_deeplab")
class UNet(SegmentationModel):
    """U-Net: a contracting path, and an expanding path that adds the features of every level.

    Without `backbone` it is the network of 2015, with two changes for images of any size:
    convolutions are padded, so that no skip is cropped; odd maps are pooled to half their size
    rounded up, and the extra row or column is cut off again after the up-convolution.

    With a backbone, the skips are the last features at each of its strides, maps are resized to
    the skip's size, and the logits of the finest skip are resized to the image.

    Args:
        backbone: `None` for the network of 2015, or as in `SegmentationModel`.
        filters: Channels at the image's own stride; twice as many at each halving. `None` for 64,
            as in the paper, and 16 in the decoder over a backbone.
        depth: Number of skips: at the strides 1, 2, 4, ... of the network of 2015; over a backbone
            at 2, 4, 8, ..., as far as it has them.
        skip_layers: Names of the layers whose outputs are the skips; `None` for the last tensor at
            each stride that all later layers depend on (`graph.find_feature_tap`).
        batch_norm: Whether batch norms follow the 3x3 convolutions; `None` for no in the network
            of 2015 and yes over a backbone.
        dropout: Share of the features dropped in training at the end of the contracting path: on
            the last two levels of the network of 2015, the coarsest features of a backbone.

    The other arguments are those of `SegmentationModel`; the network of 2015 scales pixels to
    [-1, 1].

    Example:

    >>> model = keras_deeplab.UNet(num_classes=2, filters=8, input_shape=(None, None, 1))
    >>> model(keras.ops.ones((1, 97, 129, 1))).shape
    TensorShape([1, 97, 129, 2])
    >>> model = keras_deeplab.UNet(num_classes=3, backbone="mobilenet_v2")
    >>> model.get_config()["skip_layers"]
    ('block1_expand_act', 'block3_expand_act', 'block6_expand_act', 'block13_expand_act')

    Reference:
        [Ronneberger et al., 2015, U-Net: Convolutional Networks for Biomedical Image
        Segmentation](https://arxiv.org/abs/1505.04597), section 2, figure 1.
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

    def _completed(self, arguments: dict[str, Any]) -> dict[str, Any]:
        of_2015 = arguments["backbone"] is None
        if of_2015 and arguments["skip_layers"] is not None:
            raise error("skip_layers", "left out without a `backbone`", arguments["skip_layers"])
        defaults = {"filters": 64 if of_2015 else 16, "batch_norm": not of_2015}
        missing = {key: value for key, value in defaults.items() if arguments[key] is None}
        if of_2015 and arguments["preprocessing"] == "auto":
            missing["preprocessing"] = "tf"
        return {**arguments, **missing}

    def _backbone(self, arguments: dict[str, Any]) -> tuple[keras.Model, dict[str, Any]]:
        if arguments["backbone"] is None:
            return _contracting_path(arguments), arguments
        network, names = built(arguments), arguments["skip_layers"]
        if names is None:
            coarsest = graph.geometry(network).outputs[0].stride[0] or 0
            strides = (2**level for level in range(1, arguments["depth"] + 1))
            found = (last_layer_at(network, stride) for stride in strides if stride < coarsest)
            names = tuple(name for name in found if name is not None)
        return with_feature_taps(network, arguments, skip_layers=names)

    def _output(self, x: Any, *skips: Any) -> Any:
        config = self._arguments
        of_2015 = config["backbone"] is None
        coarsest, *strides = (max(found.stride) for found in graph.geometry(self.backbone).outputs)
        by_stride = dict(zip(strides, skips, strict=True))
        if not skips or len(by_stride) < len(skips) or max(strides) >= coarsest:
            rule = f"layers of the backbone of different strides, finer than its own of {coarsest}"
            raise error("skip_layers", rule, config["skip_layers"])
        if not of_2015:
            x = kl.Dropout(config["dropout"], name="dropout")(x)
        for stride in sorted(by_stride, reverse=True):
            skip, filters, level = by_stride[stride], config["filters"] * stride, f"decoder{stride}"
            if of_2015:
                options = {"kernel_initializer": "he_uniform", "name": f"{level}_up"}
                x = kl.Conv2DTranspose(filters, 2, 2, **options)(x)
                x = CropLike(name=f"{level}_crop")(x, skip)
            else:
                x = ResizeLike(name=f"{level}_up")(x, skip)
            x = kl.Concatenate(name=f"{level}_concat")([skip, x])
            x = _two_convolutions(x, filters, level, config)
        logits = kl.Conv2D(config["num_classes"], 1, name="logits", dtype="float32")(x)
        return logits if of_2015 else self._upsampled(logits)


def _contracting_path(arguments: dict[str, Any]) -> keras.Model:
    """The network of 2015 down to its coarsest features, which come first, then the skips."""
    x = inputs = keras.Input((None, None, arguments["input_shape"][2]), name="pixels")
    levels = []
    for level in range(arguments["depth"] + 1):
        if level > 0:
            x = kl.MaxPooling2D(2, padding="same", name=f"level{level}_pool")(x)
        x = _two_convolutions(x, arguments["filters"] * 2**level, f"level{level}", arguments)
        if level >= arguments["depth"] - 1:
            x = kl.Dropout(arguments["dropout"], name=f"level{level}_dropout")(x)
        levels.append(x)
    return keras.Model(inputs, levels[::-1], name="backbone")


def _two_convolutions(x: Any, filters: int, level: str, arguments: Any) -> Any:
    options = {name: arguments[name] for name in ("batch_norm", "activation")}
    for index in (1, 2):
        x = AtrousConv2D(filters, 3, name=f"{level}_conv{index}", **options)(x)
    return x
