"""How a model is trained, as plain data."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

import numpy as np

from keras_deeplab import validation
from keras_deeplab.batch_norm import POLICIES
from keras_deeplab.data.augmentation.augmenting import CHECKS, check_flip, check_scales
from keras_deeplab.data.augmentation.color import jitter_strengths
from keras_deeplab.names import printable, suggestion


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The hyperparameters of a training run; any of them can be replaced.

    What depends on the length of a run is a share of its steps, so that a recipe fits a shorter run
    as it is.

    Attributes:
        name: Name of the recipe.
        model: Arguments of the model, used by models that have them.
        output_stride: Output stride in training; None for the model's own.
        image_scale: Factor by which images are resized for the training (`data.Resized`), such as
            0.25 for photographs of 12 megapixels; sizes and scales below are those after it. The
            final model contains it and takes images of the original size.
        crop_size: `(height, width)` of the crops, or one integer for both; None for the middle of
            the images' sizes, at most 513.
        batch_size: Images per step, over all replicas.
        steps: Optimizer steps, unless `epochs` is given.
        epochs: Epochs of `fit`, in place of `steps`: passes through the images, unless `fit` is
            given `steps_per_epoch`.
        scales: Smallest and largest random scale of the images.
        scale_step: Distance between the random scales; None for any scale.
        flip: Whether to mirror every second image left to right; not for classes that are left or
            right. "vertical" mirrors upside down instead, "horizontal_and_vertical" both ways.
        color_jitter: As in `data.training_dataset`.
        class_focus: Share of the crops that are placed around a pixel of a class drawn uniformly.
        rotation: Range of angles in degrees; like the six below, as in `data.training_dataset`.
        blur: Range of standard deviations of a Gaussian blur, in pixels.
        jpeg_quality: Range of qualities of JPEG compression.
        cutout: Largest share of an image that is cut out.
        copy_paste: Share of the images onto which classes of another image are pasted.
        copy_paste_classes: Names of the classes to paste; None for the rarer half of the classes.
        mosaic: Share of the images that are made of four.
        loss: As `losses.parse` reads it; "cross_entropy(stride=8)" shrinks the labels 8 times.
        class_weights: Method of `losses.class_weights`, or None for equal weights.
        class_weights_power: Exponent of the class weights; 0.5 takes their square root.
        multi_scale: Scales of a `MultiScale` in training; None for one scale.
        optimizer: "sgd" (weight decay as L2, before the momentum) or "adamw".
        learning_rate: Peak learning rate.
        schedule: "poly" (a power of the steps that remain) or "step" (times 0.1 after each third).
        power: Exponent of "poly".
        warmup_share: Share of the steps in which the learning rate rises from 0.
        momentum: Momentum of "sgd".
        weight_decay: Weight decay of kernels; depthwise kernels, biases and batch norms have none.
        backbone_lr_multiplier: Factor of the learning rate for the backbone; 0 keeps its weights.
        classifier_lr_multiplier: Factor of the learning rate for the class predictors' kernels.
        classifier_bias_lr_multiplier: Factor of the learning rate for their biases.
        clipnorm: Largest global norm of the gradients; None for no clipping.
        batch_norm: Policy of `batch_norm.set_policy`; with "train" a frozen norm stays frozen.
        batch_norm_memory: Share of the steps that batch norm's moving statistics remember.
        stage2_share: Steps of a second stage with batch norm frozen and no warm-up, as a share of
            the first stage's; 0 for none.
        stage2_output_stride: Output stride of the second stage.
        stage2_lr_multiplier: Factor of `learning_rate` in the second stage.

    Raises:
        ValueError: If a value is out of its range.

    Example:

    >>> recipe = keras_deeplab.recipes.get("v3_plus").replace(steps=5_000, crop_size=(257, 257))
    >>> recipe.learning_rate, recipe.steps
    (0.007, 5000)
    """

    name: str
    model: Mapping[str, Any] = field(default_factory=dict)
    output_stride: int | None = None
    image_scale: float = 1.0
    crop_size: tuple[int, int] | None = None
    batch_size: int = 8
    steps: int | None = None
    epochs: int | None = None
    scales: tuple[float, float] = (0.5, 2.0)
    scale_step: float | None = None
    flip: bool | str = True
    color_jitter: Any = None
    class_focus: float = 0.0
    rotation: tuple[float, float] | None = None
    blur: tuple[float, float] | None = None
    jpeg_quality: tuple[float, float] | None = None
    cutout: float = 0.0
    copy_paste: float = 0.0
    copy_paste_classes: tuple[str, ...] | None = None
    mosaic: float = 0.0
    loss: str = "cross_entropy"
    class_weights: str | None = None
    class_weights_power: float = 1.0
    multi_scale: tuple[float, ...] | None = None
    optimizer: str = "sgd"
    learning_rate: float = 0.007
    schedule: str = "poly"
    power: float = 0.9
    warmup_share: float = 0.0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    backbone_lr_multiplier: float = 1.0
    classifier_lr_multiplier: float = 1.0
    classifier_bias_lr_multiplier: float = 1.0
    clipnorm: float | None = None
    batch_norm: str = "train"
    batch_norm_memory: float = 1 / 30
    stage2_share: float = 0.0
    stage2_output_stride: int = 8
    stage2_lr_multiplier: float = 0.1

    def __post_init__(self) -> None:
        for known in dataclasses.fields(self):
            name, value = known.name, getattr(self, known.name)
            if name in _CHECKS and not (value is None and known.default is None):
                object.__setattr__(self, name, _CHECKS[name](name, value))
        if self.steps is None and self.epochs is None:
            raise validation.error("steps", "given where `epochs` is None", None)
        if not isinstance(self.model, Mapping):
            raise validation.error("model", "a mapping of arguments", self.model)
        jitter_strengths(self.color_jitter)

    def replace(self, **changes: Any) -> Self:
        """Returns the recipe with other values; those that are not given stay as they are.

        New `steps` also take the place of `epochs`, and new `epochs` that of `steps`.

        Raises:
            ValueError: If a recipe has no such value, or it is out of its range.
        """
        _check_names(changes)
        for new, other in (("steps", "epochs"), ("epochs", "steps")):
            if changes.get(new) is not None:
                changes.setdefault(other, None)
        return dataclasses.replace(self, **changes)

    def steps_per_epoch(self, images: int) -> int:
        """The steps for which all training images are used once, at most the recipe's steps."""
        steps = -(-images // self.batch_size)
        return steps if self.epochs else min(steps, self.steps)

    def num_epochs(self, steps_per_epoch: int) -> int:
        """The epochs of the first stage; steps are rounded up to whole epochs."""
        return self.epochs or -(-self.steps // steps_per_epoch)

    def stages(self) -> list[Self]:
        """The recipe of each stage, one or two.

        V3 and V3+ train at output stride 16 with batch norm, then at 8 with batch norm frozen and
        a small learning rate (1706.05587, section 4.1).
        """
        first = self.replace(stage2_share=0.0)
        if not self.stage2_share:
            return [first]
        length = "steps" if self.epochs is None else "epochs"
        second = first.replace(
            output_stride=self.stage2_output_stride,
            learning_rate=self.learning_rate * self.stage2_lr_multiplier,
            warmup_share=0.0,
            batch_norm="freeze",
            **{length: max(1, round(self.stage2_share * getattr(self, length)))},
        )
        return [first, second]

    def to_dict(self) -> dict[str, Any]:
        """The values as JSON stores them."""
        return json.loads(json.dumps(dataclasses.asdict(self), default=_plain))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Returns the recipe that `to_dict` wrote, or raises a ValueError."""
        _check_names(values)
        return cls(**values)

    def __str__(self) -> str:
        has_effect = {
            "name": False,  # shown above the values
            "steps": self.epochs is None,
            "image_scale": self.image_scale != 1,
            "copy_paste_classes": self.copy_paste > 0,
            "class_weights_power": self.class_weights is not None,
            "power": self.schedule == "poly",
            "warmup_share": self.schedule == "poly",
            "momentum": self.optimizer == "sgd",
            "batch_norm_memory": self.batch_norm == "train",
            "stage2_output_stride": self.stage2_share > 0,
            "stage2_lr_multiplier": self.stage2_share > 0,
        }
        lines = [
            f"  {key}: {f'{value:.4g}' if isinstance(value, float) else value}"
            for key, value in self.to_dict().items()
            if has_effect.get(key, True) and (value is False or value not in (None, {}, 0))
        ]
        lines = [f"Recipe {self.name}:", *lines]
        return "\n".join(printable(line, len(line)) for line in lines)  # a file's may be anyone's


def _check_names(values: Iterable[str]) -> None:
    names = [known.name for known in dataclasses.fields(Recipe)]
    for name in values:
        if name not in names:
            unknown = printable(str(name))
            raise ValueError(f"A recipe has no value `{unknown}`.{suggestion(name, names)}")


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise validation.error("recipe", "of numbers, strings, lists and dicts", value)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise validation.error(name, "a string", value)
    return value


def _several_scales(name: str, value: Any) -> tuple[float, ...]:
    scales = validation.numbers(name, value)
    if len(set(scales)) < max(2, len(scales)) or min(scales) <= 0:
        advice = "One scale for all images is `image_scale`"
        raise validation.error(name, "two or more distinct positive numbers", value, advice)
    return scales


_CHECKED = {
    _text: "name loss",
    validation.integer: "batch_size steps epochs output_stride stage2_output_stride",
    validation.positive: "image_scale scale_step class_weights_power learning_rate power clipnorm "
    "classifier_lr_multiplier classifier_bias_lr_multiplier "
    "batch_norm_memory stage2_lr_multiplier",
    validation.non_negative: "weight_decay stage2_share backbone_lr_multiplier",
    validation.fraction: "class_focus",
    partial(validation.fraction, below_one=True): "momentum warmup_share",
    validation.pair: "crop_size",
    _several_scales: "multi_scale",
    check_scales: "scales",
    check_flip: "flip",
    partial(validation.one_of, choices=("sgd", "adamw")): "optimizer",
    partial(validation.one_of, choices=("poly", "step")): "schedule",
    partial(validation.one_of, choices=POLICIES): "batch_norm",
    partial(validation.one_of, choices=("median", "inverse")): "class_weights",
}
_CHECKS = {name: check for check, names in _CHECKED.items() for name in names.split()} | CHECKS
