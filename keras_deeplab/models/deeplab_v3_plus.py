"""DeepLabV3+."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers as kl

from keras_deeplab.layers import ASPP, AtrousConv2D, AtrousSeparableConv2D, ResizeLike
from keras_deeplab.models import base
from keras_deeplab.models.arguments import InputShape, completed
from keras_deeplab.models.construction import image_features


@keras.saving.register_keras_serializable(package="keras_deeplab")
class DeepLabV3Plus(base.SegmentationModel):
    """DeepLabV3+: DeepLabV3 as encoder, and a decoder that sharpens it with stride-4 features.

    Args:
        num_classes: Number of classes, from 2 (background counts).
        backbone: A name of `keras_deeplab.backbones.NAMES` (ResNets, Xceptions, MobileNets, VGG16),
            or any functional Keras network without its classifier, such as `keras.applications`
            with `include_top=False`. A network is copied with its weights and never changed.
        output_stride: Stride of the features: 8, 16 or 32 (or another that the backbone has).
        aspp_rates: Rates of the 3x3 branches at this output stride; `None` for
            `(6, 12, 18) * 16 / output_stride`.
        low_level_layer: Name of the backbone's layer whose output the decoder adds; `None` for the
            one of the authors' networks (Xception, beta ResNet, MobileNetV2), else the last tensor
            at stride 4 that all later layers depend on (`graph.find_feature_tap`).
        multi_grid: ResNets and Xceptions: rates of the last block's three units; `None` for
            `(1, 2, 4)` on ResNets and `(1, 1, 1)` on Xceptions.
        stride_on: ResNets only: `"3x3"` (default, torchvision) or `"1x1"`.
        backbone_options: Further options of a backbone by name, such as `{"depth_multiplier": 0.5}`
            for MobileNetV2; see its function in `keras_deeplab.backbones`.
        separable: Whether the 3x3 convolutions of ASPP and decoder are depthwise separable; `None`
            for what the authors use with the backbone: True for Xceptions, beta ResNets and
            MobileNets, False for all others.
        aspp_filters: Channels of ASPP's branches and output.
        decoder_filters: Channels of the decoder's two 3x3 convolutions.
        low_level_filters: Channels to which the low-level features are reduced.
        detail_layer: Name of a finer layer of the backbone, for a second stage of the decoder that
            keeps what is only a few pixels wide (the authors' code: `decoder_output_stride` 4, 2);
            `"auto"` for the last tensor at stride 2, `None` for one stage as in the paper.
        detail_filters: Channels of the second stage's two 3x3 convolutions; its skip has half of
            `low_level_filters`.
        dropout: Share of ASPP's output dropped in training.
        activation: Activation of head and decoder. The output is always logits.
        epsilon: Of the head's batch norms.
        align_corners: How maps are resized: False for half-pixel centres (torchvision), True as the
            authors' networks do.
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

    >>> network = keras.applications.MobileNet(include_top=False, weights=None)
    >>> model = keras_deeplab.DeepLabV3Plus(3, network, low_level_layer="conv_pw_3_relu")
    >>> model(keras.ops.ones((1, 97, 129, 3))).shape
    TensorShape([1, 97, 129, 3])

    Reference:
        [Chen et al., 2018, Encoder-Decoder with Atrous Separable Convolution for Semantic Image
        Segmentation](https://arxiv.org/abs/1802.02611), figure 2, section 4.1.
    """

    @base.starts_from_weights
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
        name: str = "deeplab_v3_plus",
    ) -> None:
        arguments = {
            "num_classes": num_classes,
            "backbone": backbone,
            "output_stride": output_stride,
            "aspp_rates": aspp_rates,
            "low_level_layer": low_level_layer,
            "multi_grid": multi_grid,
            "stride_on": stride_on,
            "backbone_options": backbone_options,
            "separable": separable,
            "aspp_filters": aspp_filters,
            "decoder_filters": decoder_filters,
            "low_level_filters": low_level_filters,
            "detail_layer": detail_layer,
            "detail_filters": detail_filters,
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
        separable = arguments["separable"]
        shared = {"activation": activation, "epsilon": epsilon}
        with base.dtype_policy(arguments["dtype"]):
            taps = ("low_level_layer", "detail_layer")
            image, (features, low_level, *detail) = image_features(arguments, taps)
            x = ASPP(
                aspp_filters,
                arguments["aspp_rates"],
                separable=separable,
                dropout=dropout,
                name="aspp",
                **shared,
            )(features)
            stage = {"separable": separable, "align_corners": align_corners, **shared}
            x = _decoder(x, low_level, low_level_filters, decoder_filters, "decoder", **stage)
            for finer in detail:
                x = _decoder(x, finer, low_level_filters // 2, detail_filters, "detail", **stage)
            logits = kl.Conv2D(num_classes, 1, name="logits", dtype="float32")(x)
            outputs = image.upsampled(logits, align_corners)
            super().__init__(image.inputs, outputs, arguments)


def _decoder(
    x: Any,
    skip: Any,
    skip_filters: int,
    filters: int,
    name: str,
    separable: bool,
    align_corners: bool,
    **shared: Any,
) -> Any:
    """Features at the size of finer ones from the backbone, refined together with those."""
    x = ResizeLike(align_corners=align_corners, name=f"{name}_upsample")(x, skip)
    skip = AtrousConv2D(skip_filters, 1, name=f"{name}_low_level", **shared)(skip)
    x = kl.Concatenate(name=f"{name}_concat")([x, skip])
    conv = AtrousSeparableConv2D if separable else AtrousConv2D
    for index in range(2):
        x = conv(filters, 3, name=f"{name}_{index}", **shared)(x)
    return x
