"""Test-time augmentation: several scales of the image, and its mirror image."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_deeplab.layers import ResizeBy, ResizeLike
from keras_deeplab.models.base import SegmentationModel, dtype_policy
from keras_deeplab.models.deep_supervision import DeepSupervision
from keras_deeplab.models.distributed_training import DistributedTraining
from keras_deeplab.models.label_map_training import LabelMapTraining
from keras_deeplab.validation import error, is_number, one_of

FUSIONS = ("max", "mean")
Pass = Callable[[keras.Model, Any], list[Any]]


@keras.saving.register_keras_serializable(package="keras_deeplab")
class MultiScale(DeepSupervision, LabelMapTraining, DistributedTraining, keras.Model):
    """Fuses a model's predictions at several scales of the image, and for its mirror image.

    The weights are the model's own, shared by all scales. With `fusion="max"` the logits are the
    maximum over all scales at each pixel, as DeepLab V2 fuses them. With `"mean"` they are the
    logarithm of the mean probabilities, as V3 and V3+ are evaluated: their softmax is that mean.
    With `flip` each scale is used mirrored left to right as well and its logits mirrored back, so
    that a mirrored image has mirrored logits.

    A model trained at output stride 16 is evaluated so at 8: `model.with_output_stride(8)` first.
    The time is that of all scales together: a scale of 2 costs four times the scale of 1.

    In `fit` the loss is the sum of the losses of each scale and of the fused logits, as DeepLab V2
    is trained; metrics and predictions use the fused logits alone. Outputs that the model has in
    training alone, such as an auxiliary head's, have their loss at each scale, with the model's
    weight.

    Args:
        model: Any segmentation model that takes images of any size and returns logits of that size.
        scales: Factors of the image's height and width.
        align_corners: How image and logits are resized: False for half-pixel centres, True for the
            authors' rule, which turns a side n into (n - 1) * scale + 1; None for the model's own.
        name: Of the new model.
        fusion: `"max"` or `"mean"`.
        flip: Whether each scale is used mirrored too; twice the time.

    Input shape:
        `(batch, height, width, channels)`, as the model's.

    Output shape:
        `(batch, height, width, num_classes)`: logits, float32.

    Raises:
        ValueError: If the scales are not distinct positive numbers, the fusion is unknown, or the
            model does not turn images of any size into a map of logits.

    Example:

    >>> model = keras_deeplab.DeepLabV2(3, "mobilenet_v2")
    >>> several = keras_deeplab.MultiScale(model)
    >>> several(keras.ops.ones((1, 97, 129, 3))).shape
    TensorShape([1, 97, 129, 3])
    >>> scales = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    >>> careful = keras_deeplab.MultiScale(model, scales, fusion="mean", flip=True)

    Reference:
        - [Chen et al., 2017, DeepLab](https://arxiv.org/abs/1606.00915), section 4.1.1, multi-scale
          inputs: the maximum.
        - [Chen et al., 2017, DeepLab V3](https://arxiv.org/abs/1706.05587), section 4.1, inference
          strategy on the val set: scales 0.5 to 1.75 and mirrored images, at output stride 8.
    """

    def __init__(
        self,
        model: keras.Model,
        scales: Sequence[float] = (0.5, 0.75, 1.0),
        align_corners: bool | None = None,
        name: str = "multi_scale",
        *,
        fusion: str = "max",
        flip: bool = False,
    ) -> None:
        scales = checked_scales(scales)
        one_of("fusion", fusion, FUSIONS)
        _check_model(model)
        if align_corners is None:
            own = isinstance(model, SegmentationModel | MultiScale)
            align_corners = own and bool(model.get_config().get("align_corners"))
        inputs = keras.Input(model.input_shape[1:], name="images")
        passes = [one_pass for scale in scales for one_pass in _passes(scale, align_corners, flip)]
        fuse = (
            keras.layers.Maximum(name="maximum", dtype="float32")
            if fusion == "max"
            else LogMeanProbability(name="mean", dtype="float32")
        )

        def fused(network: keras.Model) -> list[Any]:
            each = [one_pass(network, inputs) for one_pass in passes]
            main = [logits for logits, *_ in each]
            return [fuse(main) if len(main) > 1 else main[0], *keras.tree.flatten(each)]

        outputs = fused(model)
        with dtype_policy(model.dtype_policy.name):  # of which `compile` takes the loss' scaling
            super().__init__(inputs=inputs, outputs=outputs[0], name=name)
        # Past Keras' tracking, which would count the model's weights a second time.
        arguments = {"model": model, "scales": scales, "align_corners": align_corners}
        arguments |= {"fusion": fusion, "flip": bool(flip)}
        object.__setattr__(self, "_arguments", arguments)
        weights: tuple[float, ...] = (1.0,)
        if isinstance(model, DeepSupervision) and model.training_graph is not None:
            outputs, weights = fused(model.training_graph), model.supervision_weights
        self._supervise(outputs, (1.0, *weights * len(passes)))

    @property
    def model(self) -> keras.Model:
        """The model inside."""
        return self._arguments["model"]

    @property
    def fusion(self) -> str:
        """`"max"` or `"mean"`."""
        return self._arguments["fusion"]

    def with_output_stride(self, output_stride: int) -> MultiScale:
        """Returns the same for the model at another output stride; see `SegmentationModel`."""
        return self._around(self.model.with_output_stride(output_stride))

    def with_dtype(self, dtype: str) -> MultiScale:
        """Returns the same for the model in another precision; see `SegmentationModel`."""
        return self._around(self.model.with_dtype(dtype))

    def _around(self, model: keras.Model) -> MultiScale:
        return MultiScale(**{**self._arguments, "model": model, "name": self.name})

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        model = keras.saving.serialize_keras_object(self.model)
        return {**self._arguments, "model": model, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> MultiScale:
        """Builds the model that `get_config` describes."""
        model = keras.saving.deserialize_keras_object(config["model"], custom_objects)
        return cls(**{**config, "model": model})


@keras.saving.register_keras_serializable(package="keras_deeplab")
class LogMeanProbability(keras.layers.Layer):
    """The logarithm of the mean of several predictions' probabilities.

    Its softmax is that mean. It is computed from log-probabilities throughout, so that a class of
    probability 0 everywhere does not become minus infinity.

    Input shape:
        A list of logits `(batch, height, width, num_classes)`.

    Output shape:
        `(batch, height, width, num_classes)`
    """

    def call(self, predictions: list[Any]) -> Any:
        """Fuses the predictions."""
        total = keras.ops.log_softmax(predictions[0])
        for logits in predictions[1:]:
            total = keras.ops.logaddexp(total, keras.ops.log_softmax(logits))
        return total - math.log(len(predictions))

    def compute_output_shape(self, input_shape: list[Any]) -> tuple[int | None, ...]:
        """The shape of one of them."""
        return tuple(input_shape[0])


def _passes(scale: float, align_corners: bool, flip: bool) -> list[Pass]:
    """The functions from a network and an image to logits at a scale, at the image's size."""
    one_pass = _pass(scale, align_corners)
    return [one_pass, _mirrored(one_pass)] if flip else [one_pass]


def _pass(scale: float, align_corners: bool) -> Pass:
    if scale == 1:
        return lambda network, image: keras.tree.flatten(network(image))
    tag = _tag(scale)
    resized = ResizeBy(scale, align_corners=align_corners, name=f"image_{tag}")
    back = ResizeLike(align_corners=align_corners, name=f"logits_{tag}", dtype="float32")

    def logits_at_scale(network: keras.Model, image: Any) -> list[Any]:
        return [back(x, image) for x in keras.tree.flatten(network(resized(image)))]

    return logits_at_scale


def _mirrored(one_pass: Pass) -> Pass:
    # Outermost, at the image's own size: the two passes of a scale are then each other's mirror
    # image whatever the resizing and the network's padding do with even and odd sizes.
    def mirrored(network: keras.Model, image: Any) -> list[Any]:
        logits = one_pass(network, keras.ops.flip(image, axis=2))
        return [keras.ops.flip(x, axis=2) for x in logits]

    return mirrored


def with_test_time_augmentation(
    model: keras.Model, scales: Sequence[float] | None, flip: bool = False
) -> keras.Model:
    """Returns a model that averages over scales and mirrored images; itself without either."""
    if scales is None and not flip:
        return model
    return MultiScale(model, scales or (1.0,), fusion="mean", flip=flip)


def checked_scales(scales: Sequence[float], name: str = "scales") -> tuple[float, ...]:
    """Returns distinct positive scales as floats."""
    valid = isinstance(scales, list | tuple) and len(scales) > 0
    if not valid or not all(is_number(scale) and 0 < scale < 100 for scale in scales):
        raise error(name, "a list of positive numbers below 100", scales)
    if len({_tag(scale) for scale in scales}) < len(scales):
        raise error(name, "distinct", scales)
    return tuple(map(float, scales))


def _tag(scale: float) -> str:
    return f"{scale:g}".replace(".", "_")


def _check_model(model: keras.Model) -> None:
    ends = [getattr(model, "inputs", None), getattr(model, "outputs", None)]
    if any(not end or len(end) != 1 or len(end[0].shape) != 4 for end in ends):
        shapes = [[tuple(x.shape) for x in end or ()] for end in ends]
        advice = f"It has inputs {shapes[0]} and outputs {shapes[1]}."
        raise error("model", "a functional model from images to one map of logits", model, advice)
    if model.input_shape[1:3] != (None, None):
        advice = f"Its input has the shape {model.input_shape}."
        raise error("model", "a model for images of any size", model, advice)
