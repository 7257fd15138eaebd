"""The backbones by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras

from keras_deeplab.backbones.alexnet import alexnet
from keras_deeplab.backbones.mobilenet_v2 import mobilenet_v2
from keras_deeplab.backbones.mobilenet_v3 import mobilenet_v3
from keras_deeplab.backbones.resnet import BETA_DEPTHS, UNITS, resnet, resnet_beta
from keras_deeplab.backbones.vgg16 import vgg16
from keras_deeplab.backbones.xception import ENTRY, xception
from keras_deeplab.names import suggestion
from keras_deeplab.validation import error


@dataclass(frozen=True)
class Backbone:
    """A network, and what models on it use by default.

    Attributes:
        builder: Called with `input_shape` and the options.
        preprocessing: The scaling of pixels that its published weights need, None for none.
        low_level_layer: The layer that the authors' decoder adds; None for the last at stride 4.
        multi_grid: The rates that DeepLabV3 and V3+ give the last stage, where it has such.
        auxiliary_layer: The layer that torchvision's auxiliary head predicts from, None for none.
        separable: Whether the 3x3 convolutions of DeepLabV3+ on it are depthwise separable: in the
            authors' networks, and on what else a dense head would outweigh.
    """

    builder: Callable[..., keras.Model]
    preprocessing: str | None
    low_level_layer: str | None = None
    multi_grid: tuple[int, int, int] | None = None
    auxiliary_layer: str | None = None
    separable: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """The options with their defaults."""
        parameters = inspect.signature(self.builder).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    def completed(self, name: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        """Returns all options: those given (None means the default), and the defaults."""
        known = self.options
        given = {key: value for key, value in options.items() if value is not None}
        for key in given.keys() - known:
            rule = f"left out: the backbone {name!r} has the options {[*known]}"
            raise error(key, rule, given[key])
        return {**known, **given}


# DeepLabV3, table 3, and the authors' released networks.
_MULTI_GRID = (1, 2, 4)
BACKBONES: dict[str, Backbone] = {
    f"resnet{depth}": Backbone(
        partial(resnet, depth),
        "torch",
        multi_grid=_MULTI_GRID,
        auxiliary_layer=f"stage3_unit{UNITS[depth][2]}_out",
    )
    for depth in UNITS
}
BACKBONES |= {
    f"resnet{depth}_beta": Backbone(
        partial(resnet_beta, depth),
        "tf",
        # The residual branch of block 1's second unit, in front of the sum.
        low_level_layer="stage1_unit2_3_norm",
        multi_grid=_MULTI_GRID,
        auxiliary_layer=f"stage3_unit{UNITS[depth][2]}_out",
        separable=True,
    )
    for depth in BETA_DEPTHS
}
BACKBONES |= {
    f"xception{depth}": Backbone(
        partial(xception, depth),
        "tf",
        # The last tensor of 256 channels at stride 4, in front of the ReLU that follows it.
        low_level_layer="entry3_conv2" if depth == 71 else "entry2_conv2",
        separable=True,
    )
    for depth in ENTRY
}
BACKBONES |= {
    # The input of the third block's 1x1 projection: 144 channels at stride 4.
    "mobilenet_v2": Backbone(mobilenet_v2, "tf", "block2_depthwise_act", separable=True),
    "mobilenet_v3_large": Backbone(
        partial(mobilenet_v3, "large"),
        "torch",
        # The block whose stride is 8: torchvision's features[4], without a shortcut.
        auxiliary_layer="block3_project_norm",
        separable=True,
    ),
    "mobilenet_v3_small": Backbone(partial(mobilenet_v3, "small"), "torch", separable=True),
    "vgg16": Backbone(vgg16, "mean"),
    "alexnet": Backbone(alexnet, "torch"),
}
NAMES = tuple(BACKBONES)


def get(name: str) -> Backbone:
    """Returns the backbone of a name; the error for an unknown one lists the known."""
    if name not in BACKBONES:
        rule = f"one of {', '.join(map(repr, NAMES))} or a functional Keras model"
        raise error("backbone", rule, name, suggestion(name, NAMES))
    return BACKBONES[name]


def build(
    name: str, input_shape: tuple[int | None, int | None, int], **options: Any
) -> keras.Model:
    """Builds a backbone by name, at its own output stride.

    Args:
        name: One of `NAMES`.
        input_shape: (height, width, channels) without the batch, None for any height or width.
        **options: Those of the network's own function; None means the default. Several have:
            `multi_grid`, rates of the last stage's three units, multiplied by what the output
            stride gives; `epsilon` of the batch norms; and `padding` in front of strides:
            "symmetric", which samples even and odd sizes alike, TensorFlow's "same", as in the
            authors' MobileNets, or "end", as in those of keras.applications: one less in front than
            "symmetric", at any size, and "same" at the first convolution.

    Returns:
        A functional model from scaled pixels `(batch, height, width, channels)` to features.

    Raises:
        ValueError: If the name is not known, or an option is not known or out of its range.
    """
    backbone = get(name)
    return backbone.builder(input_shape=input_shape, **backbone.completed(name, options))
