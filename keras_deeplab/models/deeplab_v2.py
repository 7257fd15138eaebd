"""DeepLab V2."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers as kl

from keras_deeplab import backbones
from keras_deeplab.models.arguments import InputShape
from keras_deeplab.models.base import SegmentationModel
from keras_deeplab.models.deeplab_v1 import large_fov, predictor, with_released_vgg16
from keras_deeplab.validation import error, integer


def _head_filters(name: str, value: Any) -> Any:
    return value if value in (None, "auto") else integer(name, value)


@keras.saving.register_keras_serializable(package="keras_deeplab")
class DeepLabV2(SegmentationModel):
    """DeepLab V2: atrous spatial pyramid pooling as a sum of predictors, one for each rate.

    On a ResNet each predictor is a single 3x3 convolution from the features to the classes; on
    VGG16 (in its V1 form) it is a whole branch fc6, fc7, fc8. `MultiScale` around the model gives
    the paper's training and prediction at three scales.

    Args:
        aspp_rates: One for each predictor, at least one; `None` for the paper's ASPP-L,
            `(6, 12, 18, 24) * 8 / output_stride`, which must be integers: at output stride 32 they
            must be given. ASPP-S is `(2, 4, 8, 12)`.
        head_filters: Channels of a branch's fc6 and fc7; `None` for the single convolutions.
            `"auto"` is 1024 on VGG16 and `None` on all others.

    The other arguments are those of `SegmentationModel`.

    Example:

    >>> model = keras_deeplab.DeepLabV2(num_classes=3, backbone="vgg16")
    >>> model(keras.ops.ones((1, 97, 129, 3))).shape
    TensorShape([1, 97, 129, 3])

    Reference:
        [Chen et al., 2017, DeepLab](https://arxiv.org/abs/1606.00915), section 3.2, figure 7.
    """

    paper_rates, paper_stride = (6, 12, 18, 24), 8
    checks = {**SegmentationModel.checks, "head_filters": _head_filters}

    def __init__(
        self,
        num_classes: int = 21,
        backbone: str | keras.Model = "resnet101",
        *,
        output_stride: int = 8,
        aspp_rates: tuple[int, ...] | None = None,
        stride_on: str | None = None,
        backbone_options: dict[str, Any] | None = None,
        head_filters: int | str | None = "auto",
        dropout: float = 0.5,
        align_corners: bool = True,
        preprocessing: str | None = "auto",
        input_shape: InputShape | None = None,
        dtype: str | None = None,
        weights: Any = None,
        name: str = "deeplab_v2",
    ) -> None:
        super().__init__(locals())

    def _with_defaults(self, arguments: dict[str, Any]) -> dict[str, Any]:
        backbone, completed = arguments["backbone"], with_released_vgg16(arguments)
        if completed["head_filters"] == "auto":
            completed["head_filters"] = 1024 if backbone == "vgg16" else None
        # The paper's ResNet has its strides on the 1x1 convolutions.
        has_strides = isinstance(backbone, str) and "stride_on" in backbones.get(backbone).options
        if completed["stride_on"] is None and has_strides:
            completed["stride_on"] = "1x1"
        completed = super()._with_defaults(completed)
        if not completed["aspp_rates"]:
            raise error("aspp_rates", "a tuple of at least one rate", ())
        return completed

    def _output(self, features: Any) -> Any:
        config, branches = self._arguments, []
        for index, rate in enumerate(config["aspp_rates"]):
            if config["head_filters"] is None:
                x = predictor(features, config["num_classes"], f"logits_{index}", 3, rate)
            else:
                x = large_fov(features, rate, config, f"_{index}")
            branches.append(x)
        return self._upsampled(kl.Add(name="aspp_sum", dtype="float32")(branches))
