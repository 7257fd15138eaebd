"""DeepLab V1 (LargeFOV)."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers as kl

from keras_deeplab.layers import Conv2D
from keras_deeplab.models.arguments import InputShape
from keras_deeplab.models.base import SegmentationModel
from keras_deeplab.validation import error, integer


@keras.saving.register_keras_serializable(package="keras_deeplab")
class DeepLabV1(SegmentationModel):
    """DeepLab V1: VGG16 at stride 8, and one 3x3 convolution with a large field of view.

    VGG16 is the published one: its last two poolings lose their stride and are not dilated, the
    fifth block has rate 2. The paper's loss is `losses.CrossEntropy(stride=8)`.

    Args:
        aspp_rates: The rate of the 3x3 convolution as a tuple of one; `None` for 12 at stride 8.
        backbone_options: `{"pool_size": 2}` for the poolings of the paper's text, not of its code.
        head_filters: Channels of the head's two convolutions.

    The other arguments are those of `SegmentationModel`.

    Example:

    >>> model = keras_deeplab.DeepLabV1(num_classes=3)
    >>> model(keras.ops.ones((1, 97, 129, 3))).shape
    TensorShape([1, 97, 129, 3])

    Reference:
        [Chen et al., 2014, DeepLab V1](https://arxiv.org/abs/1412.7062), section 3, table 2.
    """

    paper_rates, paper_stride = (12,), 8
    checks = {**SegmentationModel.checks, "head_filters": integer}

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
        weights: Any = None,
        name: str = "deeplab_v1",
    ) -> None:
        super().__init__(locals())

    def _with_defaults(self, arguments: dict[str, Any]) -> dict[str, Any]:
        completed = super()._with_defaults(with_released_vgg16(arguments))
        if len(completed["aspp_rates"]) != 1:
            raise error("aspp_rates", "a tuple of one rate", completed["aspp_rates"])
        return completed

    def _output(self, features: Any) -> Any:
        return self._upsampled(large_fov(features, *self._arguments["aspp_rates"], self._arguments))


def with_released_vgg16(arguments: dict[str, Any]) -> dict[str, Any]:
    """Gives VGG16 the form that V1 and V2 were released with."""
    released = {"atrous": True, "pool_size": 3} if arguments["backbone"] == "vgg16" else {}
    return {**arguments, "backbone_options": {**released, **arguments["backbone_options"]}}


def large_fov(x: Any, rate: int, arguments: Any, suffix: str = "") -> Any:
    """The layers fc6, fc7 and fc8: a 3x3 convolution at a rate, a 1x1, and the predictor."""
    options = {"padding": "same", "activation": "relu", "kernel_initializer": "he_uniform"}
    for name, size, dilation in (("fc6", 3, rate), ("fc7", 1, 1)):
        options |= {"dilation_rate": dilation, "name": f"{name}{suffix}"}
        x = Conv2D(arguments["head_filters"], size, **options)(x)
        x = kl.Dropout(arguments["dropout"], name=f"{name}{suffix}_drop")(x)
    return predictor(x, arguments["num_classes"], name=f"logits{suffix}")


def predictor(x: Any, num_classes: int, name: str, kernel_size: int = 1, rate: int = 1) -> Any:
    """A class predictor of V1 and V2, which begins with a small spread, for the sum of several."""
    initializer = keras.initializers.RandomNormal(stddev=0.01)
    options = {"padding": "same", "dilation_rate": rate, "kernel_initializer": initializer}
    return Conv2D(num_classes, kernel_size, **options, name=name, dtype="float32")(x)
