"""DeepLabV3."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers as kl

from keras_deeplab.layers import ASPP, AtrousConv2D, AtrousSeparableConv2D, BatchNormalization
from keras_deeplab.models import base
from keras_deeplab.models.arguments import InputShape, completed
from keras_deeplab.models.construction import image_features
from keras_deeplab.models.deep_supervision import DeepSupervision


@keras.saving.register_keras_serializable(package="keras_deeplab")
class DeepLabV3(DeepSupervision, base.SegmentationModel):
    """DeepLabV3: an atrous backbone, atrous spatial pyramid pooling, a predictor.

    With `auxiliary_layer` it has torchvision's auxiliary head, which is there for training alone:
    in `fit`, and wherever it is called with `training=True`, the model returns the logits of both
    heads, and the loss is the main head's plus `auxiliary_weight` times the auxiliary's.

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
            at twice the rate of the one before; for ResNets by name. There are no `aspp_rates`,
            no `head_filters` and no `dropout` then, and strides are on the 1x1.
        separable: Whether the 3x3 convolutions of the head are depthwise separable.
        aspp_filters: Channels of ASPP's branches and output.
        head_filters: Channels of the 3x3 convolution between ASPP and predictor, as in
            torchvision; `None` for none, as in the paper.
        auxiliary_layer: Name of the backbone's layer from whose output a second head predicts in
            training; `"auto"` for torchvision's (ResNets: the end of stage 3, MobileNetV3-Large:
            its fourth block), `None` for no such head.
        auxiliary_weight: Of the auxiliary head's loss.
        dropout: Share of ASPP's output dropped in training.
        activation: Activation of the heads' convolutions. The output is always logits.
        epsilon: Of the heads' batch norms.
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
        `(batch, height, width, num_classes)`: logits, float32. In training with an auxiliary head a
        list of two of them, the main head's first (inside another network that one alone).

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

    @base.starts_from_weights
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
        name: str = "deeplab_v3",
    ) -> None:
        if cascade:
            _check_cascade(aspp_rates=aspp_rates, separable=separable)
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
            "auxiliary_layer": auxiliary_layer,
            "auxiliary_weight": _checked_weight(auxiliary_weight),
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
            image, (features, *tapped) = image_features(arguments, ("auxiliary_layer",))
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
            for source in tapped:
                head = _auxiliary_head(source.shape[-1], arguments["num_classes"], **shared)
                logits = image.upsampled(head(source), align_corners, prefix="auxiliary_")
                self._supervise([outputs, logits], (1.0, auxiliary_weight), [head])


# As in torchvision, whatever the main head's is.
_AUXILIARY_DROPOUT = 0.1


def _auxiliary_head(
    channels: int, num_classes: int, activation: Any, epsilon: float
) -> keras.Model:
    """torchvision's FCNHead: a 3x3 convolution to a quarter of the channels, and a predictor."""
    x = inputs = keras.Input((None, None, channels), name="features")
    x = kl.Conv2D(
        max(1, channels // 4),
        3,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        name="conv",
    )(x)
    x = BatchNormalization(epsilon=epsilon, momentum=0.9, name="norm")(x)
    x = kl.Activation(activation, name="act")(x)
    x = kl.Dropout(_AUXILIARY_DROPOUT, name="dropout")(x)
    x = kl.Conv2D(num_classes, 1, name="logits", dtype="float32")(x)
    return keras.Model(inputs, x, name="auxiliary")


def _check_cascade(**of_aspp: Any) -> None:
    for name, value in of_aspp.items():
        if value:
            raise ValueError(
                f"`{name}` must be left out with `cascade`, which takes ASPP's place, received "
                f"{value!r}."
            )


def _checked_weight(weight: float) -> float:
    valid = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not valid or not 0 <= weight < float("inf"):
        raise ValueError(f"`auxiliary_weight` must be a number from 0, received {weight!r}.")
    return float(weight)
