"""Several scales of the image through one model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_deeplab.layers import ResizeBy, ResizeLike


@keras.saving.register_keras_serializable(package="keras_deeplab")
class MultiScale(keras.Model):
    """Shows a model the image at several scales and takes the maximum of its logits at each pixel.

    The weights are the model's own, shared by all scales. In `fit` the loss is the sum of the
    losses of each scale and of the maximum, as DeepLab V2 is trained; metrics and predictions see
    the maximum alone.

    Args:
        model: Any segmentation model that takes images of any size and returns logits of that size.
        scales: Factors of the image's height and width.
        align_corners: How image and logits are resized: False for half-pixel centres, True for the
            authors' rule, which turns a side n into (n - 1) * scale + 1.
        name: Of the new model.

    Input shape:
        `(batch, height, width, channels)`, as the model's.

    Output shape:
        `(batch, height, width, num_classes)`: logits, float32.

    Raises:
        ValueError: If the scales are no positive numbers, or the model takes one size only.

    Example:

    >>> model = keras_deeplab.DeepLabV2(3, "mobilenet_v2")
    >>> several = keras_deeplab.MultiScale(model)
    >>> several(keras.ops.ones((1, 97, 129, 3))).shape
    TensorShape([1, 97, 129, 3])

    Reference:
        [Chen et al., 2017, DeepLab](https://arxiv.org/abs/1606.00915), section 4.1.1, multi-scale
        inputs.
    """

    def __init__(
        self,
        model: keras.Model,
        scales: Sequence[float] = (0.5, 0.75, 1.0),
        align_corners: bool = False,
        name: str = "multi_scale",
    ) -> None:
        scales = _checked_scales(scales)
        if model.input_shape[1:3] != (None, None):
            raise ValueError(
                "`model` must take images of any size, received one of input shape "
                f"{model.input_shape}."
            )
        inputs = keras.Input(model.input_shape[1:], name="images")
        logits = [self._at(scale, model, inputs, align_corners) for scale in scales]
        best = logits[0]
        if len(logits) > 1:
            best = keras.layers.Maximum(name="maximum", dtype="float32")(logits)
        super().__init__(inputs=inputs, outputs=best, name=name)
        arguments = {"model": model, "scales": scales, "align_corners": align_corners}
        # Past Keras' tracking, which would count the model's weights a second time.
        object.__setattr__(self, "_arguments", arguments)
        object.__setattr__(self, "_all", keras.Model(inputs, [best, *logits]))

    @staticmethod
    def _at(scale: float, model: keras.Model, inputs: Any, align_corners: bool) -> Any:
        if scale == 1:
            return model(inputs)
        tag = f"{scale:g}".replace(".", "_")
        x = ResizeBy(scale, align_corners=align_corners, name=f"image_{tag}")(inputs)
        resize = ResizeLike(align_corners=align_corners, name=f"logits_{tag}", dtype="float32")
        return resize(model(x), inputs)

    @property
    def model(self) -> keras.Model:
        """The model inside."""
        return self._arguments["model"]

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """The maximum; in training a list of it and of every scale's logits."""
        if training:
            return self._all(inputs, training=True)
        return super().call(inputs, training=training, mask=mask)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """The loss; in training the sum over the maximum and every scale."""
        each = y_pred if isinstance(y_pred, list | tuple) else [y_pred]
        total = 0.0
        for logits in each:
            total += super().compute_loss(x, y, logits, sample_weight, training)
        # What layers add, such as regularisation, counts once.
        return total - (len(each) - 1) * sum(self.losses, 0.0)

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """The metrics of the maximum."""
        best = y_pred[0] if isinstance(y_pred, list | tuple) else y_pred
        return super().compute_metrics(x, y, best, sample_weight)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        model = keras.saving.serialize_keras_object(self.model)
        return {**self._arguments, "model": model, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> MultiScale:
        """Builds the model that `get_config` describes."""
        model = keras.saving.deserialize_keras_object(config["model"], custom_objects)
        return cls(**{**config, "model": model})


def _checked_scales(scales: Sequence[float]) -> tuple[float, ...]:
    valid = isinstance(scales, list | tuple) and len(scales) > 0
    if not valid or any(not isinstance(s, int | float) or not 0 < s < 100 for s in scales):
        raise ValueError(f"`scales` must be positive numbers, received {scales!r}.")
    return tuple(map(float, scales))
