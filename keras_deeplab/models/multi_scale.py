"""Test-time augmentation: several scales of the image, and its mirror image."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import keras
from keras import ops

from keras_deeplab.graph.network import dtype_policy
from keras_deeplab.layers import ResizeBy, ResizeLike
from keras_deeplab.models.backbone import deserialize_network, serialize_network
from keras_deeplab.models.deep_supervision import DeepSupervision
from keras_deeplab.models.training import DistributedTraining, LabelMapTraining
from keras_deeplab.validation import error, is_number, one_of


@keras.saving.register_keras_serializable(package="keras_deeplab")
class MultiScale(DeepSupervision, LabelMapTraining, DistributedTraining, keras.Model):
    """Fuses a model's predictions at several scales of the image, and for its mirror image.

    The weights and the rule of resizing are the model's own. A scale of 2 costs four times the
    scale of 1. In `fit` the loss is the sum of the losses of each scale and of the fused logits, as
    DeepLab V2 is trained; those of an auxiliary head count at each scale, with the model's weight.

    Args:
        model: Any segmentation model that takes images of any size and returns logits of that size.
        scales: Factors of the image's height and width, distinct positive numbers.
        name: Of the new model.
        fusion: `"max"`, the maximum over all scales at each pixel, as DeepLab V2 fuses logits, or
            `"mean"`, logits whose softmax is the mean of the probabilities, as V3 and V3+ are
            evaluated.
        flip: Whether each scale is used mirrored left to right too; twice the time.

    Input and output shapes are the model's; logits are float32.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    >>> model = keras_deeplab.DeepLabV2(3, "mobilenet_v2")
    >>> several = keras_deeplab.MultiScale(model, (0.5, 1.0), fusion="mean", flip=True)
    >>> several(keras.ops.ones((1, 97, 129, 3))).shape
    TensorShape([1, 97, 129, 3])

    Reference:
        [Chen et al., 2017, DeepLab](https://arxiv.org/abs/1606.00915), section 4.1.1: the maximum;
        [Chen et al., 2017, DeepLabV3](https://arxiv.org/abs/1706.05587), section 4.1: the mean at
        scales 0.5 to 1.75 and for mirrored images, at output stride 8.
    """

    def __init__(
        self,
        model: keras.Model,
        scales: Sequence[float] = (0.5, 0.75, 1.0),
        *,
        name: str = "multi_scale",
        fusion: str = "max",
        flip: bool = False,
    ) -> None:
        scales = checked_scales(scales)
        one_of("fusion", fusion, ("max", "mean"))
        _check_model(model)
        align_corners = getattr(unwrapped(model), "aligns_corners", False)
        inputs = keras.Input(model.input_shape[1:], name="images")
        maximum = keras.layers.Maximum(name="maximum", dtype="float32")
        fuse = maximum if fusion == "max" else _log_mean_probability

        def fused(network: keras.Model) -> list[Any]:
            views = []
            for scale in scales:
                views += _views(network, inputs, scale, align_corners, flip)
            main = [logits for logits, *_ in views]
            return [fuse(main) if len(main) > 1 else main[0], *keras.tree.flatten(views)]

        outputs, weights = fused(model), (1.0,)
        with dtype_policy(model.dtype_policy.name):  # of which `compile` takes the loss' scaling
            super().__init__(inputs=inputs, outputs=outputs[0], name=name)
        # Past Keras' tracking, which would count the model's weights a second time.
        arguments = {"model": model, "scales": scales, "fusion": fusion, "flip": bool(flip)}
        object.__setattr__(self, "_arguments", arguments)
        if getattr(model, "training_graph", None) is not None:
            outputs, weights = fused(model.training_graph), model.supervision_weights
        self._supervise(outputs, (1.0, *weights * self.num_views))

    @property
    def num_views(self) -> int:
        """Views of an image, each a pass through the model."""
        return len(self.scales) * (1 + self.flip)

    @property
    def is_image_scale(self) -> bool:
        """Whether it only resizes the images, as `Recipe.image_scale` does."""
        return self.num_views == 1 and self.fusion == "max"

    @property
    def model(self) -> keras.Model:
        """The model inside."""
        return self._arguments["model"]

    @property
    def fusion(self) -> str:
        """`"max"` or `"mean"`."""
        return self._arguments["fusion"]

    @property
    def scales(self) -> tuple[float, ...]:
        """Factors of the image's height and width."""
        return self._arguments["scales"]

    @property
    def flip(self) -> bool:
        """Whether each scale is used mirrored too."""
        return self._arguments["flip"]

    def with_output_stride(self, output_stride: int) -> MultiScale:
        """Returns the same for the model at another output stride; see `SegmentationModel`."""
        return self._around(self.model.with_output_stride(output_stride))

    def with_dtype(self, dtype: str) -> MultiScale:
        """Returns the same for the model in another precision; see `SegmentationModel`."""
        return self._around(self.model.with_dtype(dtype))

    def _around(self, model: keras.Model) -> MultiScale:
        return MultiScale(**{**self._arguments, "model": model, "name": self.name})

    def get_config(self) -> dict[str, Any]:
        return {**self._arguments, "model": serialize_network(self.model), "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> MultiScale:
        model = deserialize_network(config["model"], custom_objects)
        return cls(**{**config, "model": model})


def multi_scales(model: keras.Model) -> Iterator[MultiScale]:
    """Yields the `MultiScale`s around a network, the outermost first."""
    while isinstance(model, MultiScale):
        yield model
        model = model.model


def unwrapped(model: keras.Model) -> keras.Model:
    """Returns the model inside `MultiScale`, also inside several; any other model itself."""
    while isinstance(model, MultiScale):
        model = model.model
    return model


def _views(
    network: keras.Model, image: Any, scale: float, align_corners: bool, flip: bool
) -> list[list[Any]]:
    """A network's outputs at a scale, at the image's size, and those for the mirrored image."""
    tag = f"{scale:g}".replace(".", "_")
    resized = ResizeBy(scale, align_corners=align_corners, name=f"image_{tag}")
    back = ResizeLike(align_corners=align_corners, name=f"logits_{tag}", dtype="float32")

    def at_scale(image: Any) -> list[Any]:
        if scale == 1:
            found = keras.tree.flatten(network(image))
            # A network of one's own may end in half precision; the same size changes no value.
            return [x if x.dtype == "float32" else back(x, image) for x in found]
        return [back(x, image) for x in keras.tree.flatten(network(resized(image)))]

    if not flip:
        return [at_scale(image)]
    # Mirrored at the image's own size: the two views are then each other's mirror image whatever
    # the resizing and the network's padding do with even and odd sizes.
    mirrored = at_scale(ops.flip(image, axis=2))
    return [at_scale(image), [ops.flip(x, axis=2) for x in mirrored]]


def _log_mean_probability(predictions: list[Any]) -> Any:
    """From logarithms throughout, so that a probability of 0 does not become minus infinity."""
    total = ops.log_softmax(predictions[0])
    for logits in predictions[1:]:
        view = ops.log_softmax(logits)
        # `ops.logaddexp`, but for `log1p`, which ONNX lacks.
        smaller = ops.exp(-ops.abs(total - view))
        total = ops.maximum(total, view) + ops.log(1 + smaller)
    return total - math.log(len(predictions))


def at_image_scale(model: keras.Model, scale: float) -> keras.Model:
    """Returns a model that resizes images by a factor first; itself if it does already.

    The factor is part of the network: `with_test_time_augmentation` keeps it.
    """
    return model if scale in (1, image_scale(model)) else MultiScale(model, (scale,))


def image_scale(model: keras.Model) -> float:
    """Returns the factor of `at_image_scale` in a model; 1 if there is none."""
    return math.prod(around.scales[0] for around in multi_scales(model) if around.is_image_scale)


def without_views(model: keras.Model) -> keras.Model:
    """Returns the network inside, still at its image scale."""
    return at_image_scale(unwrapped(model), image_scale(model))


def with_test_time_augmentation(
    model: keras.Model, scales: Sequence[float] | None, flip: bool = False
) -> keras.Model:
    """Returns a model that averages over scales and mirrored images; itself without either.

    They replace those that the model averages over: `scales=(1,)` returns the network inside. A
    maximum over scales, as of DeepLab V2, is part of the network.
    """
    if scales is None and not flip:
        return model
    while isinstance(model, MultiScale) and model.fusion == "mean":
        model = model.model
    scales = checked_scales(scales or (1.0,))
    if scales == (1.0,) and not flip:
        return model
    return MultiScale(model, scales, fusion="mean", flip=flip)


def checked_scales(scales: Sequence[float], name: str = "scales") -> tuple[float, ...]:
    """Returns distinct positive scales as floats."""
    valid = isinstance(scales, list | tuple) and len(scales) > 0
    valid = valid and all(is_number(scale) and 0 < scale < 100 for scale in scales)
    # Distinct as far as the layers' names have them.
    if not valid or len({f"{scale:g}" for scale in scales}) < len(scales):
        raise error(name, "a list of distinct positive numbers below 100", scales)
    return tuple(map(float, scales))


def _check_model(model: keras.Model) -> None:
    ends = [getattr(model, "inputs", None) or (), getattr(model, "outputs", None) or ()]
    shapes = [tuple(x.shape) for end in ends for x in end]
    one_map_each = list(map(len, ends)) == [1, 1] and all(len(shape) == 4 for shape in shapes)
    if not one_map_each or shapes[0][1:3] != (None, None):
        rule = "a functional model from images of any size to one map of logits"
        raise error("model", rule, model, f"Its input and output shapes are {shapes}.")
