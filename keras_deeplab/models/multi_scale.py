"""Several scales of the image through one model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import keras

from keras_deeplab.layers import ResizeBy, ResizeLike
from keras_deeplab.models.deep_supervision import DeepSupervision
from keras_deeplab.models.distributed_training import DistributedTraining


@keras.saving.register_keras_serializable(package="keras_deeplab")
class MultiScale(DeepSupervision, DistributedTraining, keras.Model):
    """Shows a model the image at several scales and takes the maximum of its logits at each pixel.

    The weights are the model's own, shared by all scales. In `fit` the loss is the sum of the
    losses of each scale and of the maximum, as DeepLab V2 is trained; metrics and predictions see
    the maximum alone. What the model has a loss for in its own training, such as an auxiliary head,
    has it at each scale, with the model's weight.

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
        ValueError: If the scales are no different positive numbers, the model does not turn images
            into a map of logits, or takes one size only.

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
        _check_model(model)
        inputs = keras.Input(model.input_shape[1:], name="images")
        views = [_view(scale, align_corners) for scale in scales]
        maximum = keras.layers.Maximum(name="maximum", dtype="float32")

        def at_all_scales(network: keras.Model) -> list[Any]:
            each = [view(network, inputs) for view in views]
            answers = [answer for answer, *_ in each]
            best = maximum(answers) if len(answers) > 1 else answers[0]
            return [best, *keras.tree.flatten(each)]

        outputs = at_all_scales(model)
        super().__init__(inputs=inputs, outputs=outputs[0], name=name)
        # Past Keras' tracking, which would count the model's weights a second time.
        arguments = {"model": model, "scales": scales, "align_corners": align_corners}
        object.__setattr__(self, "_arguments", arguments)
        weights: tuple[float, ...] = (1.0,)
        if isinstance(model, DeepSupervision) and model.training_graph is not None:
            outputs, weights = at_all_scales(model.training_graph), model.supervision_weights
        self._supervise(outputs, (1.0, *weights * len(scales)))

    @property
    def model(self) -> keras.Model:
        """The model inside."""
        return self._arguments["model"]

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        model = keras.saving.serialize_keras_object(self.model)
        return {**self._arguments, "model": model, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> MultiScale:
        """Builds the model that `get_config` describes."""
        model = keras.saving.deserialize_keras_object(config["model"], custom_objects)
        return cls(**{**config, "model": model})


def _view(scale: float, align_corners: bool) -> Callable[[keras.Model, Any], list[Any]]:
    """What networks make of the image at a scale, at the image's size again."""
    if scale == 1:
        return lambda network, image: keras.tree.flatten(network(image))
    tag = _tag(scale)
    resized = ResizeBy(scale, align_corners=align_corners, name=f"image_{tag}")
    back = ResizeLike(align_corners=align_corners, name=f"logits_{tag}", dtype="float32")

    def seen(network: keras.Model, image: Any) -> list[Any]:
        return [back(logits, image) for logits in keras.tree.flatten(network(resized(image)))]

    return seen


def _checked_scales(scales: Sequence[float]) -> tuple[float, ...]:
    valid = isinstance(scales, list | tuple) and len(scales) > 0
    if not valid or not all(isinstance(s, Real) and 0 < s < 100 for s in scales):
        raise ValueError(f"`scales` must be positive numbers, received {scales!r}.")
    if len({_tag(scale) for scale in scales}) < len(scales):
        raise ValueError(f"`scales` must differ from each other, received {scales!r}.")
    return tuple(map(float, scales))


def _tag(scale: float) -> str:
    return f"{scale:g}".replace(".", "_")


def _check_model(model: keras.Model) -> None:
    ends = [getattr(model, "inputs", None), getattr(model, "outputs", None)]
    if any(not end or len(end) != 1 or len(end[0].shape) != 4 for end in ends):
        shapes = [[tuple(x.shape) for x in end or ()] for end in ends]
        raise ValueError(
            "`model` must be a functional model from images to one map of logits, received "
            f"{model!r} from {shapes[0]} to {shapes[1]}."
        )
    if model.input_shape[1:3] != (None, None):
        raise ValueError(
            "`model` must take images of any size, received one of input shape "
            f"{model.input_shape}."
        )
