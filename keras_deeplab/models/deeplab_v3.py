"""DeepLabV3."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers as kl

from keras_deeplab.layers import ASPP, AtrousConv2D, AtrousSeparableConv2D
from keras_deeplab.models.arguments import InputShape
from keras_deeplab.models.base import SegmentationModel
from keras_deeplab.models.deep_supervision import DeepSupervision, auxiliary_head
from keras_deeplab.validation import error


@keras.saving.register_keras_serializable(package="keras_deeplab")
class DeepLabV3(DeepSupervision, SegmentationModel):
    """DeepLabV3: an atrous backbone, atrous spatial pyramid pooling, a predictor.

    Args:
        cascade: Whether blocks 5 to 7, copies of the last block that work at twice the rate of the
            one before, replace ASPP and head; for ResNets by name, their strides on the 1x1.
        separable: Whether the 3x3 convolutions of the head are depthwise separable.
        aspp_filters: Channels of ASPP's branches and output.
        head_filters: Channels of torchvision's 3x3 convolution behind ASPP; `None` for none.
        auxiliary_layer: The backbone's layer from which torchvision's auxiliary head predicts;
            `"auto"` for torchvision's own, `None` for none. In training it returns both logits.
        auxiliary_weight: Of the auxiliary head's loss, which is added to the main head's.

    The other arguments are those of `SegmentationModel`.

    Example:

    >>> model = keras_deeplab.DeepLabV3(num_classes=3, backbone="mobilenet_v2")
    >>> model(keras.ops.ones((1, 97, 129, 3))).shape
    TensorShape([1, 97, 129, 3])

    Reference:
        [Chen et al., 2017, DeepLabV3](https://arxiv.org/abs/1706.05587), section 3.3, figure 5;
        the cascade: section 3.2, figure 3.
    """

    def __init__(
        self,
        num_classes: int = 21,
        backbone: str | keras.Model = "resnet50",
        *,
        output_stride: int = 16,
        aspp_rates: tuple[int, ...] | None = None,
        multi_grid: tuple[int, ...] | None = None,
        stride_on: str | None = None,
        backbone_options: dict[str, Any] | None = None,
        cascade: bool = False,
        separable: bool = False,
        aspp_filters: int = 256,
        head_filters: int | None = 256,
        auxiliary_layer: str | None = None,
        auxiliary_weight: float = 0.4,
        dropout: float = 0.1,
        activation: Any = "relu",
        epsilon: float = 1e-5,
        align_corners: bool = False,
        preprocessing: str | None = "auto",
        input_shape: InputShape | None = None,
        dtype: str | None = None,
        weights: Any = None,
        name: str = "deeplab_v3",
    ) -> None:
        super().__init__(locals())

    def _with_defaults(self, arguments: dict[str, Any]) -> dict[str, Any]:
        if not arguments["cascade"]:
            return super()._with_defaults(arguments)
        for name in ("aspp_rates", "separable"):
            if arguments[name]:
                raise error(name, "left out with `cascade`, which replaces ASPP", arguments[name])
        options = {**arguments["backbone_options"], "cascade": True}
        own = {"head_filters": None, "stride_on": arguments["stride_on"] or "1x1"}
        return {**arguments, **own, "aspp_rates": (), "backbone_options": options}

    def _feature_taps(self, network: Any, arguments: Any) -> dict[str, Any]:  # noqa: ARG002
        return {"auxiliary_layer": arguments["auxiliary_layer"]}

    def _output(self, x: Any, *_: Any) -> Any:
        config = self._arguments
        if not config["cascade"]:
            options = self._options("separable", "dropout", "activation", "epsilon")
            x = ASPP(config["aspp_filters"], config["aspp_rates"], name="aspp", **options)(x)
        if config["head_filters"] is not None:
            conv = AtrousSeparableConv2D if config["separable"] else AtrousConv2D
            options = self._options("activation", "epsilon")
            x = conv(config["head_filters"], 3, name="head", **options)(x)
        return self._upsampled(kl.Conv2D(self.num_classes, 1, name="logits", dtype="float32")(x))

    def _add_training_outputs(self, _: Any, *taps: Any) -> None:
        for features in taps:
            head = auxiliary_head(features.shape[-1], self._arguments)
            outputs = [self.output, self._upsampled(head(features), "auxiliary_")]
            self._supervise(outputs, (1.0, self._arguments["auxiliary_weight"]), [head])
