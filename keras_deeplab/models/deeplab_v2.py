"""DeepLab V2."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers as kl

from keras_deeplab import backbones
from keras_deeplab.models import base
from keras_deeplab.models.arguments import InputShape, completed
from keras_deeplab.models.construction import image_features
from keras_deeplab.models.deeplab_v1 import RELEASED_VGG16, large_fov


@keras.saving.register_keras_serializable(package="keras_deeplab")
class DeepLabV2(base.SegmentationModel):
    """DeepLab V2: atrous spatial pyramid pooling as a sum of predictors, one for each rate.

    On a ResNet each predictor is a single 3x3 convolution from the features to the classes; on
    VGG16 (in its V1 form) it is a whole branch fc6, fc7, fc8. `MultiScale` around the model gives
    the paper's training and prediction at three scales.

    Args:
        num_classes: Number of classes, from 2 (background counts).
        backbone: `"resnet101"` (the paper's), `"vgg16"`, another name of `keras_deeplab.backbones`,
            or any functional Keras network without its classifier.
        output_stride: Stride of the features.
        aspp_rates: One for each predictor, at least one; `None` for the paper's ASPP-L,
            `(6, 12, 18, 24) * 8 / output_stride`, which must be integers: at output stride 32 they
            are to be given. ASPP-S is `(2, 4, 8, 12)`.
        stride_on: ResNets only: `"1x1"` (default, as in the paper's network) or `"3x3"`.
        backbone_options: Further options of a backbone by name, as in `DeepLabV1`.
        head_filters: Channels of a branch's fc6 and fc7; `None` for the single convolutions.
            `"auto"` is 1024 on VGG16 and `None` on all others.
        dropout: Share of a branch's values dropped in training.
        align_corners: How the logits are resized: True as in the released network, False for
            half-pixel centres.
        preprocessing: `"auto"` (the own backbones' scaling; none for a user's network), another of
            `keras_deeplab.backbones.PREPROCESSING`, or `None`.
        input_shape: (height, width, channels), `None` for any height or width.
        dtype: Dtype policy such as `"mixed_bfloat16"`; the global one by default.
        weights: Where to start from: the name of published weights, the path of a file of weights
            in any format of `keras_deeplab.weights.load`, or a Keras model. What they need of a
            model is then the default of the other arguments.
        name: Of the model.

    Input shape:
        `(batch, height, width, channels)`: RGB in 0..255, uint8 or float, of any size from 1x1.

    Output shape:
        `(batch, height, width, num_classes)`: logits, float32.

    Raises:
        ValueError: If an argument is out of its range; the error names it.

    Example:

    >>> model = keras_deeplab.DeepLabV2(num_classes=3, backbone="vgg16")
    >>> model(keras.ops.ones((1, 97, 129, 3))).shape
    TensorShape([1, 97, 129, 3])

    Reference:
        [Chen et al., 2017, DeepLab](https://arxiv.org/abs/1606.00915), section 3.2, figure 7.
    """

    @base.starts_from_weights
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
        name: str = "deeplab_v2",
    ) -> None:
        is_vgg = isinstance(backbone, str) and backbone == "vgg16"
        if is_vgg:
            backbone_options = {**RELEASED_VGG16, **(backbone_options or {})}
        if head_filters == "auto":
            head_filters = 1024 if is_vgg else None
        if isinstance(backbone, str) and "stride_on" in backbones.find(backbone).options:
            stride_on = stride_on or "1x1"
        arguments = {
            "num_classes": num_classes,
            "backbone": backbone,
            "output_stride": output_stride,
            "aspp_rates": aspp_rates,
            "stride_on": stride_on,
            "backbone_options": backbone_options,
            "head_filters": head_filters,
            "dropout": dropout,
            "align_corners": align_corners,
            "preprocessing": preprocessing,
            "input_shape": input_shape,
            "dtype": dtype,
            "name": name,
        }
        arguments = completed(arguments, rates=(6, 12, 18, 24), rates_at=8)
        if not arguments["aspp_rates"]:
            raise ValueError("`aspp_rates` must hold at least one rate, received ().")
        with base.dtype_policy(arguments["dtype"]):
            image, (features,) = image_features(arguments)
            branches = [
                self._predictor(features, num_classes, rate, head_filters, dropout, f"_{index}")
                for index, rate in enumerate(arguments["aspp_rates"])
            ]
            logits = kl.Add(name="aspp_sum", dtype="float32")(branches)
            outputs = image.upsampled(logits, align_corners)
            super().__init__(image.inputs, outputs, arguments)

    @staticmethod
    def _predictor(
        x: Any, num_classes: int, rate: int, filters: int | None, dropout: float, suffix: str
    ) -> Any:
        if filters is not None:
            return large_fov(x, num_classes, rate, filters, dropout, suffix)
        return kl.Conv2D(
            num_classes,
            3,
            padding="same",
            dilation_rate=rate,
            kernel_initializer=keras.initializers.RandomNormal(stddev=0.01),
            name=f"logits{suffix}",
            dtype="float32",
        )(x)
