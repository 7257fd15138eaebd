"""U-Net."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers as kl

from keras_deeplab import graph
from keras_deeplab.graph.network import functional
from keras_deeplab.layers import AtrousConv2D, CropLike, ResizeLike
from keras_deeplab.models import base
from keras_deeplab.models.arguments import InputShape, check_filters, completed
from keras_deeplab.models.construction import Image, atrous_copy, own_network, padded_image


@keras.saving.register_keras_serializable(package="keras_deeplab")
class UNet(base.SegmentationModel):
    """U-Net: a contracting path, and an expanding path that takes up every level's features again.

    Without `backbone` it is the network of 2015, with two changes that let it label every pixel of
    an image of any size: convolutions are padded, so that the output has the input's size and no
    skip is cropped; odd maps are pooled to half their size rounded up, and the row or column too
    many is cut off again after the up-convolution.

    With a backbone, the skips are the last features at each of its strides, maps are resized to
    the skip's size, and the logits of the finest skip are resized to the image.

    Args:
        num_classes: Number of classes, from 2 (background counts).
        backbone: `None` for the network of 2015, a name of `keras_deeplab.backbones.NAMES`, or any
            functional Keras network without its classifier, such as `keras.applications` with
            `include_top=False`. A network is copied with its weights and never changed.
        filters: Channels at the image's own stride; twice as many at each halving. `None` for 64,
            as in the paper, and 16 in the decoder over a backbone.
        depth: Number of skips: at the strides 1, 2, 4, ... of the network of 2015; over a backbone
            at 2, 4, 8, ..., as far as it has them.
        skip_layers: Names of the backbone's layers whose outputs are the skips; `None` for the last
            tensor at each stride that all later layers depend on (`graph.find_feature_tap`).
        backbone_options: Options of a backbone by name, such as `{"depth_multiplier": 0.5}` for
            MobileNetV2; see its function in `keras_deeplab.backbones`.
        batch_norm: Whether batch norms follow the 3x3 convolutions; `None` for no in the network
            of 2015 and yes over a backbone.
        dropout: Share of the features dropped in training at the end of the contracting path: on
            the last two levels of the network of 2015, the coarsest features of a backbone.
        activation: Activation of the 3x3 convolutions. The output is always logits.
        preprocessing: `"auto"` (`"tf"` for the network of 2015, the own backbones' scaling; none
            for a user's network), another of `keras_deeplab.backbones.PREPROCESSING`, or `None`.
        input_shape: (height, width, channels), `None` for any height or width.
        dtype: Dtype policy such as `"mixed_bfloat16"`; the global one by default.
        weights: Where to start from: the name of published weights, the path of a file of weights
            in any format of `keras_deeplab.weights.load`, or a Keras model. What they need of a
            model is then the default of the other arguments.
        name: Of the model.

    Input shape:
        `(batch, height, width, channels)`: pixels in 0..255, uint8 or float, of any size from 1x1.

    Output shape:
        `(batch, height, width, num_classes)`: logits, float32.

    Raises:
        ValueError: If an argument is out of its range; the error names it.

    Example:

    >>> model = keras_deeplab.UNet(num_classes=2, filters=8, input_shape=(None, None, 1))
    >>> model(keras.ops.ones((1, 97, 129, 1))).shape
    TensorShape([1, 97, 129, 2])
    >>> model = keras_deeplab.UNet(num_classes=3, backbone="mobilenet_v2")
    >>> model.get_config()["skip_layers"]
    ('block1_expand_act', 'block3_expand_act', 'block6_expand_act', 'block13_expand_act')

    Reference:
        [Ronneberger et al., 2015, U-Net: Convolutional Networks for Biomedical Image
        Segmentation](https://arxiv.org/abs/1505.04597), section 2, figure 1.
    """

    @base.starts_from_weights
    def __init__(
        self,
        num_classes: int = 21,
        backbone: str | keras.Model | None = None,
        *,
        filters: int | None = None,
        depth: int = 4,
        skip_layers: tuple[str, ...] | None = None,
        backbone_options: dict[str, Any] | None = None,
        batch_norm: bool | None = None,
        dropout: float = 0.5,
        activation: Any = "relu",
        preprocessing: str | None = "auto",
        input_shape: InputShape | None = None,
        dtype: str | None = None,
        name: str = "unet",
    ) -> None:
        arguments = {
            "num_classes": num_classes,
            "backbone": backbone,
            "filters": filters,
            "depth": depth,
            "skip_layers": skip_layers,
            "backbone_options": backbone_options,
            "batch_norm": batch_norm,
            "dropout": dropout,
            "activation": keras.activations.serialize(keras.activations.get(activation)),
            "preprocessing": preprocessing,
            "input_shape": input_shape,
            "dtype": dtype,
            "name": name,
        }
        arguments = _completed(arguments)
        with base.dtype_policy(arguments["dtype"]):
            image, network = (_of_2015 if backbone is None else _over_a_backbone)(arguments)
            x, *skips = network(image.scaled(arguments["preprocessing"]))
            if backbone is not None:
                x = kl.Dropout(dropout, name="dropout")(x)
            strides = [max(found.stride) for found in graph.geometry(network).outputs[1:]]
            for skip, stride in zip(skips, strides, strict=True):
                width, level = arguments["filters"] * stride, f"decoder{stride}"
                x = (_up_convolution if backbone is None else _resized)(x, skip, width, level)
                x = kl.Concatenate(name=f"{level}_concat")([skip, x])
                x = _two_convolutions(x, width, level, arguments)
            logits = kl.Conv2D(num_classes, 1, name="logits", dtype="float32")(x)
            outputs = logits if backbone is None else image.upsampled(logits)
            super().__init__(image.inputs, outputs, arguments)


def _completed(arguments: dict[str, Any]) -> dict[str, Any]:
    done = completed(arguments)
    over_a_backbone = done["backbone"] is not None
    if done["filters"] is None:
        done["filters"] = 16 if over_a_backbone else 64
    if done["batch_norm"] is None:
        done["batch_norm"] = over_a_backbone
    check_filters("filters", done["filters"])
    check_filters("depth", done["depth"])
    layers = done["skip_layers"]
    if layers is not None and not over_a_backbone:
        raise ValueError(f"`skip_layers` is for a `backbone`, received {layers!r} without one.")
    if layers is not None and (not isinstance(layers, list | tuple) or not layers):
        raise ValueError(f"`skip_layers` must be names of layers, received {layers!r}.")
    return done


def _of_2015(arguments: dict[str, Any]) -> tuple[Image, keras.Model]:
    """The contracting path; the outputs are the coarsest features and the skips, finest last."""
    if arguments["preprocessing"] == "auto":
        arguments["preprocessing"] = "tf"
    depth, levels = arguments["depth"], []
    x = inputs = keras.Input(arguments["input_shape"], name="pixels")
    for level in range(depth + 1):
        if level > 0:
            x = kl.MaxPooling2D(2, padding="same", name=f"level{level}_pool")(x)
        x = _two_convolutions(x, arguments["filters"] * 2**level, f"level{level}", arguments)
        if level >= depth - 1:
            x = kl.Dropout(arguments["dropout"], name=f"level{level}_dropout")(x)
        levels.append(x)
    images = keras.Input(arguments["input_shape"], name="images")
    return Image(images, images), keras.Model(inputs, levels[::-1], name="backbone")


def _over_a_backbone(arguments: dict[str, Any]) -> tuple[Image, keras.Model]:
    """The backbone; the outputs are its features and the skips, finest last."""
    network = own_network(arguments)
    features = functional(network).outputs[0]
    found = graph.geometry(network)
    coarsest = _stride(network, found[features], features, "backbone")
    names = arguments["skip_layers"] or _last_at_each_stride(network, coarsest, arguments["depth"])
    arguments["skip_layers"] = tuple(names)
    skips = {
        _stride(network, found[skip], skip, "skip_layers"): skip for skip in _named(network, names)
    }
    if len(skips) < len(names) or max(skips) >= coarsest:
        raise ValueError(
            f"`skip_layers` must have different strides, finer than the {coarsest} of the backbone "
            f"'{network.name}', received {tuple(names)}."
        )
    outputs = [features, *(skips[stride] for stride in sorted(skips, reverse=True))]
    # At its own stride nothing is rewritten: this is a copy with its weights, for any size.
    copy = atrous_copy(network, outputs, coarsest)
    return padded_image(arguments["input_shape"], copy), copy


def _last_at_each_stride(network: keras.Model, coarsest: int, depth: int) -> list[str]:
    """Layers at the strides 2, 4, 8, ... below the coarsest; not every network has all of them."""
    names = []
    for stride in (2**level for level in range(1, depth + 1) if 2**level < coarsest):
        try:
            names.append(graph.find_feature_tap(network, stride))
        except ValueError:
            continue
    if not names:
        raise ValueError(
            f"The backbone '{network.name}', which ends at stride {coarsest}, has no finer tensor "
            f"at 2 to {2**depth} that all later layers depend on: name some with `skip_layers`."
        )
    return names


def _named(network: keras.Model, names: Sequence[str]) -> list[keras.KerasTensor]:
    try:
        return [graph.tensor_of(network, name) for name in names]
    except ValueError as error:
        raise ValueError(f"`skip_layers` is wrong. {error}") from error


def _stride(
    network: keras.Model, found: graph.TensorGeometry, tensor: keras.KerasTensor, argument: str
) -> int:
    stride = found.stride
    if None in stride or len(tensor.shape) != 4:
        raise ValueError(
            f"`{argument}` must give maps (batch, height, width, channels) of the image; "
            f"'{network.name}' gives {tuple(tensor.shape)} without a stride."
        )
    return max(stride)


def _up_convolution(x: Any, skip: Any, filters: int, level: str) -> Any:
    up = kl.Conv2DTranspose(filters, 2, 2, kernel_initializer="he_normal", name=f"{level}_up")
    return CropLike(name=f"{level}_crop")(up(x), skip)


def _resized(x: Any, skip: Any, _filters: int, level: str) -> Any:
    return ResizeLike(name=f"{level}_up")(x, skip)


def _two_convolutions(x: Any, filters: int, level: str, arguments: dict[str, Any]) -> Any:
    options = {key: arguments[key] for key in ("batch_norm", "activation")}
    for index in (1, 2):
        x = AtrousConv2D(filters, 3, name=f"{level}_conv{index}", **options)(x)
    return x
