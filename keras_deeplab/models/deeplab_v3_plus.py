"""DeepLabV3+."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers as kl

from keras_deeplab import graph
from keras_deeplab.layers import ASPP, AtrousConv2D, AtrousSeparableConv2D, ResizeLike
from keras_deeplab.models.arguments import InputShape
from keras_deeplab.models.backbone import last_layer_at
from keras_deeplab.models.base import SegmentationModel


@keras.saving.register_keras_serializable(package="keras_deeplab")
class DeepLabV3Plus(SegmentationModel):
    """DeepLabV3+: DeepLabV3 as encoder, and a decoder that sharpens it with stride-4 features.

    Args:
        low_level_layer: The backbone's layer whose output the decoder adds; `None` for that of the
            authors' networks, else the last at stride 4 (`graph.find_feature_tap`).
        separable: Whether 3x3 convolutions are depthwise separable; `None` for what the authors
            use: True on Xceptions, beta ResNets and MobileNets, False on all others.
        aspp_filters: Channels of ASPP's branches and output.
        decoder_filters: Channels of the decoder's two 3x3 convolutions.
        low_level_filters: Channels to which the low-level features are reduced.
        detail_layer: A finer layer, for a second decoder stage for objects a few pixels wide
            (the authors' `decoder_output_stride` 4, 2); `"auto"` for the last at stride 2.
        detail_filters: Channels of that stage; its low-level features have half as many as others.

    The other arguments are those of `SegmentationModel`.

    Example:

    >>> network = keras.applications.MobileNet(include_top=False, weights=None)
    >>> model = keras_deeplab.DeepLabV3Plus(3, network, low_level_layer="conv_pw_3_relu")
    >>> model(keras.ops.ones((1, 97, 129, 3))).shape
    TensorShape([1, 97, 129, 3])

    Reference:
        [Chen et al., 2018, DeepLabV3+](https://arxiv.org/abs/1802.02611), figure 2, section 4.1.
    """

    def __init__(
        self,
        num_classes: int = 21,
        backbone: str | keras.Model = "resnet50",
        *,
        output_stride: int = 16,
        aspp_rates: tuple[int, ...] | None = None,
        low_level_layer: str | None = None,
        multi_grid: tuple[int, ...] | None = None,
        stride_on: str | None = None,
        backbone_options: dict[str, Any] | None = None,
        separable: bool | None = None,
        aspp_filters: int = 256,
        decoder_filters: int = 256,
        low_level_filters: int = 48,
        detail_layer: str | None = None,
        detail_filters: int = 64,
        dropout: float = 0.1,
        activation: Any = "relu",
        epsilon: float = 1e-5,
        align_corners: bool = False,
        preprocessing: str | None = "auto",
        input_shape: InputShape | None = None,
        dtype: str | None = None,
        weights: Any = None,
        name: str = "deeplab_v3_plus",
    ) -> None:
        super().__init__(locals())

    def _feature_taps(self, network: keras.Model, arguments: dict[str, Any]) -> dict[str, Any]:
        low_level = arguments["low_level_layer"] or graph.find_feature_tap(network, 4)
        detail = arguments["detail_layer"]
        detail = last_layer_at(network, 2) if detail == "auto" else detail
        return {"low_level_layer": low_level, "detail_layer": detail}

    def _output(self, features: Any, low_level: Any, *detail: Any) -> Any:
        config = self._arguments
        options = self._options("separable", "dropout", "activation", "epsilon")
        x = ASPP(config["aspp_filters"], config["aspp_rates"], name="aspp", **options)(features)
        reduced = config["low_level_filters"]
        x = self._stage(x, low_level, reduced, config["decoder_filters"], "decoder")
        for finer in detail:
            x = self._stage(x, finer, reduced // 2, config["detail_filters"], "detail")
        return self._upsampled(kl.Conv2D(self.num_classes, 1, name="logits", dtype="float32")(x))

    def _stage(self, x: Any, finer: Any, reduced: int, filters: int, name: str) -> Any:
        """A stage of the decoder: features at the size of finer ones, refined with those."""
        shared = self._options("activation", "epsilon")
        x = ResizeLike(name=f"{name}_upsample", **self._options("align_corners"))(x, finer)
        finer = AtrousConv2D(reduced, 1, name=f"{name}_low_level", **shared)(finer)
        x = kl.Concatenate(name=f"{name}_concat")([x, finer])
        conv = AtrousSeparableConv2D if self._arguments["separable"] else AtrousConv2D
        for index in range(2):
            x = conv(filters, 3, name=f"{name}_{index}", **shared)(x)
        return x
