"""DeepLab V1 (LargeFOV)."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers as kl

from keras_deeplab.models import base
from keras_deeplab.models.arguments import InputShape, check_filters, completed
from keras_deeplab.models.construction import image_features

# The network that V1 and V2 were released with.
RELEASED_VGG16 = {"atrous": True, "pool_size": 3}


@keras.saving.register_keras_serializable(package="keras_deeplab")
class DeepLabV1(base.SegmentationModel):
    """DeepLab V1: VGG16 at stride 8, and one 3x3 convolution that looks far.

    The backbone is the published one: its last two poolings keep their windows without their
    stride and are not dilated, and the fifth block has rate 2. The paper takes the loss on labels
    shrunk eight times: `losses.CrossEntropy(stride=8)`.

    Args:
        num_classes: Number of classes, from 2 (background counts).
        backbone: `"vgg16"` for the published network; another name of `keras_deeplab.backbones`, or
            any functional Keras network, is dilated by `graph.with_output_stride`.
        output_stride: Stride of the features.
        aspp_rates: The rate of the head's 3x3 convolution, as a tuple of one; `None` for
            `(12,) * 8 / output_stride`.
        backbone_options: Options of a backbone by name: `{"pool_size": 2}` gives VGG16 the poolings
            of the paper's text instead of the released network's 3x3.
        head_filters: Channels of the head's two convolutions.
        dropout: Share of the head's values dropped in training, behind each convolution.
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

    >>> model = keras_deeplab.DeepLabV1(num_classes=3)
    >>> model(keras.ops.ones((1, 97, 129, 3))).shape
    TensorShape([1, 97, 129, 3])

    Reference:
        [Chen et al., 2014, Semantic Image Segmentation with Deep Convolutional Nets and Fully
        Connected CRFs](https://arxiv.org/abs/1412.7062), section 3; DeepLab-LargeFOV in table 1.
    """

    @base.starts_from_weights
    def __init__(
        self,
        num_classes: int = 21,
        backbone: str | keras.Model = "vgg16",
        *,
        output_stride: int = 8,
        aspp_rates: tuple[int] | None = None,
        backbone_options: dict[str, Any] | None = None,
        head_filters: int = 1024,
        dropout: float = 0.5,
        align_corners: bool = True,
        preprocessing: str | None = "auto",
        input_shape: InputShape | None = None,
        dtype: str | None = None,
        name: str = "deeplab_v1",
    ) -> None:
        if isinstance(backbone, str) and backbone == "vgg16":
            backbone_options = {**RELEASED_VGG16, **(backbone_options or {})}
        arguments = {
            "num_classes": num_classes,
            "backbone": backbone,
            "output_stride": output_stride,
            "aspp_rates": aspp_rates,
            "backbone_options": backbone_options,
            "head_filters": head_filters,
            "dropout": dropout,
            "align_corners": align_corners,
            "preprocessing": preprocessing,
            "input_shape": input_shape,
            "dtype": dtype,
            "name": name,
        }
        arguments = completed(arguments, rates=(12,), rates_at=8)
        if len(arguments["aspp_rates"]) != 1:
            raise ValueError(f"`aspp_rates` must be one rate, received {aspp_rates!r}.")
        check_filters("head_filters", head_filters)
        with base.dtype_policy(arguments["dtype"]):
            image, (features,) = image_features(arguments)
            (rate,) = arguments["aspp_rates"]
            logits = large_fov(features, num_classes, rate, head_filters, dropout)
            outputs = image.upsampled(logits, align_corners)
            super().__init__(image.inputs, outputs, arguments)


def large_fov(
    x: Any, num_classes: int, rate: int, filters: int, dropout: float, suffix: str = ""
) -> Any:
    """The layers fc6, fc7 and fc8: a 3x3 convolution at a rate, a 1x1, and the predictor."""
    for name, kernel, dilation in (("fc6", 3, rate), ("fc7", 1, 1)):
        x = kl.Conv2D(
            filters,
            kernel,
            padding="same",
            dilation_rate=dilation,
            activation="relu",
            kernel_initializer="he_normal",
            name=f"{name}{suffix}",
        )(x)
        x = kl.Dropout(dropout, name=f"{name}{suffix}_drop")(x)
    # The published predictors begin with a small spread, so that the sum of several stays small.
    start = keras.initializers.RandomNormal(stddev=0.01)
    return kl.Conv2D(
        num_classes, 1, kernel_initializer=start, name=f"logits{suffix}", dtype="float32"
    )(x)
