"""SPP-net."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers as kl

from keras_deeplab import graph
from keras_deeplab.graph.network import functional, top_level_calls
from keras_deeplab.layers import SpatialPyramidPooling2D
from keras_deeplab.models import base
from keras_deeplab.models.arguments import InputShape, completed, is_positive
from keras_deeplab.models.construction import atrous_copy, own_network, padded_image

_POOLINGS = ("max", "average")


@keras.saving.register_keras_serializable(package="keras_deeplab")
class SPPNet(base.SegmentationModel):
    """SPP-net: a backbone, spatial pyramid pooling to a fixed length, dense layers.

    It classifies whole images. One set of dense layers serves images of every size, in training
    too: train it at several sizes in turn, as the paper does, and predict at any other.

    Spatial pyramid pooling replaces the last pooling, as in the paper: where a backbone ends in a
    pooling (VGG16), that layer is left out and its input is pooled; AlexNet here ends before it.

    Args:
        num_classes: Number of classes, from 2.
        backbone: A name of `keras_deeplab.backbones.NAMES`, or any functional Keras network without
            its classifier, such as `keras.applications` with `include_top=False`. It keeps its own
            output stride. A network is copied with its weights and never changed.
        levels: Bins per side of each level of the pyramid.
        dense: Widths of the dense layers in front of the predictor; `()` for none.
        dropout: Share of each dense layer's values dropped in training.
        pooling: How a bin is pooled: `"max"`, as in the paper, or `"average"`.
        replace_pooling: Whether the pyramid takes the place of the pooling that a backbone ends in.
            False keeps that one in front of the pyramid: with one level of 7x7 averages this is
            the VGG16 of torchvision and keras.applications.
        backbone_options: Options of a backbone by name, such as `{"depth_multiplier": 0.5}` for
            MobileNetV2; see its function in `keras_deeplab.backbones`.
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
        `(batch, num_classes)`: logits, float32.

    Raises:
        ValueError: If an argument is out of its range; the error names it.

    Example:

    >>> model = keras_deeplab.SPPNet(5, "mobilenet_v2", levels=(3, 2, 1), dense=(64,))
    >>> for size in ((1, 1), (64, 64), (97, 129)):
    ...     print(model(keras.ops.ones((2, *size, 3))).shape)
    (2, 5)
    (2, 5)
    (2, 5)

    Reference:
        [He et al., 2014, Spatial Pyramid Pooling in Deep Convolutional Networks for Visual
        Recognition](https://arxiv.org/abs/1406.4729), section 2.2 and figure 3 (the layer), 2.3
        (several sizes in turn), 3.1 (levels and dense layers).
    """

    @base.starts_from_weights
    def __init__(
        self,
        num_classes: int,
        backbone: str | keras.Model = "vgg16",
        *,
        levels: tuple[int, ...] = (6, 3, 2, 1),
        dense: tuple[int, ...] = (4096, 4096),
        dropout: float = 0.5,
        pooling: str = "max",
        replace_pooling: bool = True,
        backbone_options: dict[str, Any] | None = None,
        preprocessing: str | None = "auto",
        input_shape: InputShape | None = None,
        dtype: str | None = None,
        name: str = "spp_net",
    ) -> None:
        arguments = {
            "num_classes": num_classes,
            "backbone": backbone,
            "levels": levels,
            "dense": dense,
            "dropout": dropout,
            "pooling": pooling,
            "replace_pooling": replace_pooling,
            "backbone_options": backbone_options,
            "preprocessing": preprocessing,
            "input_shape": input_shape,
            "dtype": dtype,
            "name": name,
        }
        arguments = _completed(arguments)
        with base.dtype_policy(arguments["dtype"]):
            inputs, features = _features(arguments)
            x = SpatialPyramidPooling2D(levels, pooling, name="spatial_pyramid")(features)
            for index, width in enumerate(arguments["dense"], 1):
                x = kl.Dense(width, "relu", kernel_initializer="he_normal", name=f"dense{index}")(x)
                x = kl.Dropout(dropout, name=f"dense{index}_dropout")(x)
            logits = kl.Dense(arguments["num_classes"], name="logits", dtype="float32")(x)
            super().__init__(inputs, logits, arguments)


def _completed(arguments: dict[str, Any]) -> dict[str, Any]:
    done = completed(arguments)
    for name in ("levels", "dense"):
        numbers = done[name]
        if not isinstance(numbers, list | tuple) or not all(map(is_positive, numbers)):
            raise ValueError(
                f"`{name}` must be a tuple of positive integers, received {numbers!r}."
            )
        done[name] = tuple(numbers)
    if not done["levels"]:
        raise ValueError("`levels` must hold at least one level, received ().")
    if done["pooling"] not in _POOLINGS:
        raise ValueError(f"`pooling` must be one of {_POOLINGS}, received {done['pooling']!r}.")
    return done


def _features(arguments: dict[str, Any]) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """The model's input, and the map in front of the last pooling."""
    network = own_network(arguments)
    replaced = arguments["replace_pooling"]
    last = _last_map(network) if replaced else functional(network).outputs[0]
    tapped = keras.Model(functional(network).inputs[0], last, name=network.name)
    # At its largest stride nothing is rewritten: this is a copy with its weights, for any size.
    strides = [stride for found in graph.geometry(tapped).values() for stride in found.stride]
    backbone = atrous_copy(network, [last], max(s for s in strides if s))
    image = padded_image(arguments["input_shape"], backbone)
    (features,) = backbone(image.scaled(arguments["preprocessing"]))
    return image.inputs, features


def _last_map(network: keras.Model) -> keras.KerasTensor:
    """What a network returns, without the pooling (and its padding) that it may end in."""
    tensor = functional(network).outputs[0]
    sources = {id(call.outputs[0]): call for call in top_level_calls(network)}
    for layers in (kl.MaxPooling2D | kl.AveragePooling2D, kl.ZeroPadding2D):
        call = sources.get(id(tensor))
        if call is None or not isinstance(call.operation, layers):
            break
        (tensor,) = call.inputs
    return tensor
