"""DeepLabV3."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers as kl

from keras_deeplab.layers import ASPP, AtrousConv2D, AtrousSeparableConv2D
from keras_deeplab.models import base
from keras_deeplab.models.construction import InputShape, completed, image_features


@keras.saving.register_keras_serializable(package="keras_deeplab")
class DeepLabV3(base.SegmentationModel):
    """DeepLabV3: an atrous backbone, atrous spatial pyramid pooling, a predictor.

    Args:
        num_classes: Number of classes, from 2 (background counts).
        backbone: A name of `keras_deeplab.backbones.NAMES` (ResNets, Xceptions, MobileNets, VGG16),
            or any functional Keras network without its classifier, such as `keras.applications`
            with `include_top=False`. A network is copied with its weights and never changed.
        output_stride: Stride of the features: 8, 16 or 32 (or another that the backbone has).
        aspp_rates: Rates of the 3x3 branches at this output stride; `None` for
            `(6, 12, 18) * 16 / output_stride`.
        multi_grid: ResNets and Xceptions: rates of the last block's three units; `None` for
            `(1, 2, 4)` on ResNets and `(1, 1, 1)` on Xceptions.
        stride_on: ResNets only: `"3x3"` (default, torchvision) or `"1x1"`.
        backbone_options: Further options of a backbone by name, such as `{"depth_multiplier": 0.5}`
            for MobileNetV2; see its function in `keras_deeplab.backbones`.
        cascade: Whether ASPP's place is taken by blocks 5 to 7, copies of the last block that work
            at twice the rate of the one before; for ResNets by name. There are no `aspp_rates` and
            no `head_filters` then, and strides are on the 1x1.
        separable: Whether the 3x3 convolutions of the head are depthwise separable.
        aspp_filters: Channels of ASPP's branches and output.
        head_filters: Channels of the 3x3 convolution between ASPP and predictor, as in
            torchvision; `None` for none, as in the paper.
        dropout: Share of ASPP's output dropped in training.
        activation: Activation of the head's convolutions. The output is always logits.
        epsilon: Of the head's batch norms.
        align_corners: How maps are resized: False for half-pixel centres (torchvision), True as the
            authors' networks do.
        preprocessing: `"auto"` (the own backbones' scaling; none for a user's network), `"tf"`,
            `"torch"` or `None`.
        input_shape: (height, width, channels), `None` for any height or width.
        dtype: Dtype policy such as `"mixed_bfloat16"`; the global one by default.
        name: Of the model.

    Input shape:
        `(batch, height, width, channels)`: RGB in 0..255, uint8 or float, of any size from 1x1.

    Output shape:
        `(batch, height, width, num_classes)`: logits, float32.

    Raises:
        ValueError: If an argument is out of its range; the error names it.

    Example:

    >>> model = keras_deeplab.DeepLabV3(num_classes=3, backbone="mobilenet_v2")
    >>> model(keras.ops.ones((1, 97, 129, 3))).shape
    TensorShape([1, 97, 129, 3])

    Reference:
        [Chen et al., 2017, Rethinking Atrous Convolution for Semantic Image
        Segmentation](https://arxiv.org/abs/1706.05587), section 3.3, figure 5; the cascade section
        3.2, figure 3.
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
        dropout: float = 0.1,
        activation: Any = "relu",
        epsilon: float = 1e-5,
        align_corners: bool = False,
        preprocessing: str | None = "auto",
        input_shape: InputShape | None = None,
        dtype: str | None = None,
        name: str = "deeplab_v3",
    ) -> None:
        if cascade:
            backbone_options = {**(backbone_options or {}), "cascade": True}
            aspp_rates, head_filters, stride_on = (), None, stride_on or "1x1"
        arguments = {
            "num_classes": num_classes,
            "backbone": backbone,
            "output_stride": output_stride,
            "aspp_rates": aspp_rates,
            "multi_grid": multi_grid,
            "stride_on": stride_on,
            "backbone_options": backbone_options,
            "cascade": cascade,
            "separable": separable,
            "aspp_filters": aspp_filters,
            "head_filters": head_filters,
            "dropout": dropout,
            "activation": keras.activations.serialize(keras.activations.get(activation)),
            "epsilon": epsilon,
            "align_corners": align_corners,
            "preprocessing": preprocessing,
            "input_shape": input_shape,
            "dtype": dtype,
            "name": name,
        }
        arguments = completed(arguments)
        shared = {"activation": activation, "epsilon": epsilon}
        with base.dtype_policy(arguments["dtype"]):
            image, (features,) = image_features(arguments)
            x = features
            if not cascade:
                x = ASPP(
                    aspp_filters,
                    arguments["aspp_rates"],
                    separable=separable,
                    dropout=dropout,
                    name="aspp",
                    **shared,
                )(x)
            if head_filters is not None:
                conv = AtrousSeparableConv2D if separable else AtrousConv2D
                x = conv(head_filters, 3, name="head", **shared)(x)
            logits = kl.Conv2D(num_classes, 1, name="logits", dtype="float32")(x)
            outputs = image.upsampled(logits, align_corners)
            super().__init__(image.inputs, outputs, arguments)
