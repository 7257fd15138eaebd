"""The backbones that are known by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras

from keras_deeplab.backbones.alexnet import alexnet
from keras_deeplab.backbones.mobilenet_v2 import LOW_LEVEL as MOBILENET_V2_LOW_LEVEL
from keras_deeplab.backbones.mobilenet_v2 import mobilenet_v2
from keras_deeplab.backbones.mobilenet_v3 import mobilenet_v3
from keras_deeplab.backbones.resnet import UNITS, resnet
from keras_deeplab.backbones.resnet_beta import DEPTHS, resnet_beta
from keras_deeplab.backbones.resnet_beta import LOW_LEVEL as RESNET_BETA_LOW_LEVEL
from keras_deeplab.backbones.vgg16 import vgg16
from keras_deeplab.backbones.xception import ENTRY, xception
from keras_deeplab.backbones.xception import LOW_LEVEL as XCEPTION_LOW_LEVEL
from keras_deeplab.names import suggestion


@dataclass(frozen=True)
class Backbone:
    """What is known of a network by its name.

    Attributes:
        builder: Called with `input_shape` and the options.
        preprocessing: How its published weights expect their pixels.
        low_level_layer: What the authors' decoder adds; None for the last tensor at stride 4.
        multi_grid: The rates that DeepLabV3 and V3+ give the last stage, where it has such.
        auxiliary_layer: What torchvision's auxiliary head predicts from; None where there is none.
        separable: Whether the 3x3 convolutions of DeepLabV3+ on it are depthwise separable: in the
            authors' networks, and on what else a dense head would outweigh.
    """

    builder: Callable[..., keras.Model]
    preprocessing: str
    low_level_layer: str | None = None
    multi_grid: tuple[int, int, int] | None = None
    auxiliary_layer: str | None = None
    separable: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """The options with their defaults."""
        parameters = inspect.signature(self.builder).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def _end_of_stage3(depth: int) -> str:
    return f"stage3_unit{UNITS[depth][2]}_out"


# DeepLabV3, table 3, and the authors' released networks.
_MULTI_GRID = (1, 2, 4)
BACKBONES: Mapping[str, Backbone] = {
    **{
        f"resnet{depth}": Backbone(
            partial(resnet, depth), "torch", None, _MULTI_GRID, _end_of_stage3(depth)
        )
        for depth in UNITS
    },
    **{
        f"resnet{depth}_beta": Backbone(
            partial(resnet_beta, depth),
            "tf",
            RESNET_BETA_LOW_LEVEL,
            _MULTI_GRID,
            _end_of_stage3(depth),
            separable=True,
        )
        for depth in DEPTHS
    },
    **{
        f"xception{depth}": Backbone(
            partial(xception, depth), "tf", XCEPTION_LOW_LEVEL[depth], separable=True
        )
        for depth in ENTRY
    },
    "mobilenet_v2": Backbone(mobilenet_v2, "tf", MOBILENET_V2_LOW_LEVEL, separable=True),
    # The block whose stride is 8: torchvision's features[4], without a shortcut.
    "mobilenet_v3_large": Backbone(
        partial(mobilenet_v3, "large"),
        "torch",
        auxiliary_layer="block3_project_norm",
        separable=True,
    ),
    "mobilenet_v3_small": Backbone(partial(mobilenet_v3, "small"), "torch", separable=True),
    "vgg16": Backbone(vgg16, "mean"),
    "alexnet": Backbone(alexnet, "torch"),
}
NAMES = tuple(BACKBONES)


def find(name: str) -> Backbone:
    """The backbone of a name; an unknown name is an error that lists the known ones."""
    if name not in BACKBONES:
        raise ValueError(
            f"`backbone` must be one of {NAMES} or a functional Keras model, received {name!r}."
            f"{suggestion(name, NAMES)}"
        )
    return BACKBONES[name]


def completed_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a backbone: those given (None means the default), and the other defaults.

    Raises:
        ValueError: If the backbone is unknown or has no such option.
    """
    known = find(name).options
    given = {key: value for key, value in options.items() if value is not None}
    for key, value in given.items():
        if key not in known:
            raise ValueError(
                f"`{key}` is no option of the backbone {name!r}, which has {sorted(known)}, "
                f"received {value!r}."
            )
    return {**known, **given}


def build(
    name: str, input_shape: tuple[int | None, int | None, int], **options: Any
) -> keras.Model:
    """Builds a backbone by name, at its own output stride.

    Args:
        name: One of `NAMES`.
        input_shape: (height, width, channels) without the batch.
        **options: Those of the network's own function; None means the default.

    Returns:
        A functional model from scaled pixels to features.

    Raises:
        ValueError: If the name is not known, or the network has no such option.
    """
    return find(name).builder(input_shape=input_shape, **completed_options(name, options))
