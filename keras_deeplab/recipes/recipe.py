"""How a model is trained, as plain data."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from keras_deeplab.data.augment import checked_focus
from keras_deeplab.data.color import jitter_strengths
from keras_deeplab.recipes.checks import follows, is_number, numbers

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("poly", "step")
BATCH_NORMS = ("train", "freeze_statistics", "freeze")
CLASS_WEIGHTS = (None, "median", "inverse")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a paper says of its training; every value can be replaced.

    Attributes:
        name: Of the recipe.
        model: Arguments of the model, for the models that have them.
        output_stride: Of the backbone's features in training; None for the model's own.
        crop_size: (height, width) of the crops; None for the images' middle size, at most 513.
        batch_size: Images a step, over all replicas.
        steps: Optimizer steps; None where `epochs` says how long.
        epochs: Passes through the images; None where `steps` says how long.
        scales: Smallest and largest random scale of the images.
        scale_step: Distance of the scales that are drawn; None for any between.
        flip: Whether every second image is mirrored; not for classes that are left or right.
        color_jitter: As in `data.training_dataset`.
        class_focus: Share of the crops that are laid around a pixel of a class drawn evenly.
        loss: As `losses.parse` reads it; with "cross_entropy(stride=8)" on labels shrunk 8 times.
        class_weights: Method of `losses.class_weights`, or None for equal weights.
        class_weights_power: Its exponent: at 0.5 rare classes weigh the square root more.
        multi_scale: Scales at which a `MultiScale` shows the images in training; None for one.
        optimizer: "sgd" (weight decay as L2, in front of the momentum) or "adamw".
        learning_rate: The highest.
        schedule: "poly" (a power of the steps that remain) or "step" (times 0.1 every third).
        power: Of "poly".
        warmup_steps: Steps in which the rate rises from 0, at most a tenth of all.
        momentum: Of "sgd".
        weight_decay: Of kernels; those of depthwise convolutions, biases and batch norms have none.
        backbone_learning_rate: Factor of the rate of all of the backbone's variables.
        classifier_learning_rate: Factor of the rate of the class predictors' kernels.
        classifier_bias_learning_rate: Factor of the rate of their biases.
        clipnorm: Largest norm of all gradients together; None for no limit.
        batch_norm: Policy of `batch_norm.set_policy`.
        batch_norm_momentum: None for one that fits the number of steps. Given, it is for `steps`:
            `replace(steps=...)` keeps its memory the same share of them.
        fine_steps: Steps of a second stage with finer features, batch norm frozen; 0 for none.
        fine_epochs: The same in passes through the images; not both.
        fine_output_stride: Its output stride.
        fine_learning_rate: Its learning rate, with the same schedule and no warm-up; None for a
            tenth of `learning_rate`. Given, it is for `learning_rate`, and `fine_steps` for
            `steps`: `replace` keeps their ratios.

    Raises:
        ValueError: If a value is out of its range; the error names it.

    Example:

    >>> recipe = keras_deeplab.recipes.find("v3_plus").replace(steps=5_000, crop_size=(257, 257))
    >>> recipe.learning_rate, recipe.steps
    (0.007, 5000)
    """

    name: str
    model: Mapping[str, Any] = field(default_factory=dict)
    output_stride: int | None = None
    crop_size: tuple[int, int] | None = None
    batch_size: int = 8
    steps: int | None = None
    epochs: int | None = None
    scales: tuple[float, float] = (0.5, 2.0)
    scale_step: float | None = None
    flip: bool = True
    color_jitter: Any = None
    class_focus: float = 0.0
    loss: str = "cross_entropy"
    class_weights: str | None = None
    class_weights_power: float = 1.0
    multi_scale: tuple[float, ...] | None = None
    optimizer: str = "sgd"
    learning_rate: float = 0.007
    schedule: str = "poly"
    power: float = 0.9
    warmup_steps: int = 0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    backbone_learning_rate: float = 1.0
    classifier_learning_rate: float = 1.0
    classifier_bias_learning_rate: float = 1.0
    clipnorm: float | None = None
    batch_norm: str = "train"
    batch_norm_momentum: float | None = None
    fine_steps: int = 0
    fine_epochs: int = 0
    fine_output_stride: int = 8
    fine_learning_rate: float | None = None

    def __post_init__(self) -> None:
        for name in ("crop_size", "scales", "multi_scale"):  # from JSON they are lists
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else numbers(name, value))
        if not isinstance(self.model, Mapping):
            raise ValueError(f"`model` must be a mapping of arguments, received {self.model!r}.")
        self._check_choices()
        self._check_numbers()
        if len(self.scales) != 2 or not 0 < self.scales[0] <= self.scales[1]:
            raise ValueError(
                "`scales` must be two positive numbers, smallest and largest, received "
                f"{self.scales}."
            )
        momentum = self.batch_norm_momentum
        if momentum is not None and (not is_number(momentum) or not 0 <= momentum < 1):
            raise ValueError(f"`batch_norm_momentum` must be in [0, 1), received {momentum!r}.")
        checked_focus(self.class_focus)
        jitter_strengths(self.color_jitter)

    def _check_choices(self) -> None:
        known = {
            "optimizer": OPTIMIZERS,
            "schedule": SCHEDULES,
            "batch_norm": BATCH_NORMS,
            "class_weights": CLASS_WEIGHTS,
            "flip": (True, False),
        }
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ValueError(
                    f"`{name}` must be one of {values}, received {getattr(self, name)!r}."
                )
        for steps, epochs in (("steps", "epochs"), ("fine_steps", "fine_epochs")):
            given = [name for name in (steps, epochs) if getattr(self, name)]
            if len(given) == 2 or (steps == "steps" and not given):
                raise ValueError(
                    f"One of `{steps}` and `{epochs}` must be given, received "
                    f"{getattr(self, steps)} and {getattr(self, epochs)}."
                )

    def _check_numbers(self) -> None:
        rules = {
            "at least 0": ("warmup_steps", "momentum", "weight_decay", "fine_steps", "fine_epochs"),
            "above 0": (
                *("learning_rate", "fine_learning_rate", "power", "clipnorm", "scale_step"),
                *("backbone_learning_rate", "class_weights_power"),
            ),
            "an integer from 1": (
                *("batch_size", "steps", "epochs"),
                *("output_stride", "fine_output_stride"),
            ),
        }
        for rule, names in rules.items():
            for name in names:
                value = getattr(self, name)
                if value is not None and not follows(rule, value):
                    raise ValueError(f"`{name}` must be {rule}, received {value!r}.")

    def replace(self, **changes: Any) -> Self:
        """The recipe with other values.

        `steps` takes the place of `epochs` and the other way round. What the recipe says for its
        own steps and learning rate goes with them unless it is given too: the steps and the rate of
        a second stage, and batch norm's memory, which shrinks with the steps: the papers' 0.9997 is
        for 30,000 of them, and after 5,000 a fifth of the statistics would still be their start.
        Other `class_weights` are taken whole.
        """
        for this, other, nothing in (("steps", "epochs", None), ("fine_steps", "fine_epochs", 0)):
            for new, old in ((this, other), (other, this)):
                if changes.get(new) and old not in changes:
                    changes[old] = nothing
        changes = {**self._following(changes), **changes}
        unknown = sorted(set(changes) - {known.name for known in dataclasses.fields(self)})
        if unknown:
            raise ValueError(f"A recipe has no {', '.join(f'`{name}`' for name in unknown)}.")
        return dataclasses.replace(self, **changes)

    def _following(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """The values that go with those that change."""
        found: dict[str, Any] = {}
        ratios = {
            name: changes[name] / old
            for name in ("steps", "learning_rate")
            if (old := getattr(self, name)) and changes.get(name) and is_number(changes[name])
        }
        if changes.get("class_weights"):
            found["class_weights_power"] = 1.0
        has_fine = self.fine_steps or self.fine_epochs
        if has_fine and self.fine_learning_rate and "learning_rate" in ratios:
            found["fine_learning_rate"] = self.fine_learning_rate * ratios["learning_rate"]
        if self.fine_steps and "fine_steps" not in changes and self.steps:
            if "steps" in ratios:
                found["fine_steps"] = max(1, round(self.fine_steps * ratios["steps"]))
            elif changes.get("epochs") and is_number(changes["epochs"]):
                share = self.fine_steps / self.steps
                found |= {"fine_steps": 0, "fine_epochs": max(1, round(changes["epochs"] * share))}
        if self.batch_norm_momentum and self.steps:
            if "steps" in ratios:
                memory = min(1.0, ratios["steps"]) / (1 - self.batch_norm_momentum)
                found["batch_norm_momentum"] = 1 - 1 / max(memory, 10.0)
            elif changes.get("epochs"):
                found["batch_norm_momentum"] = None  # their steps are known in training only
        return found

    def to_dict(self) -> dict[str, Any]:
        """The values as JSON can hold them."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def total_steps(self, steps_per_epoch: int) -> int:
        """The optimizer steps of the (first) stage: whole epochs."""
        epochs = self.epochs or -(-self.steps // steps_per_epoch)
        return epochs * steps_per_epoch

    def stages(self) -> list[Self]:
        """The recipe of each stage; a second one is there if it has steps.

        V3 and V3+ train at output stride 16 with batch norm, then at 8 with it frozen and a small
        learning rate (1706.05587, section 4.1).
        """
        first = self.replace(fine_steps=0, fine_epochs=0)
        if not self.fine_steps and not self.fine_epochs:
            return [first]
        fine = first.replace(
            output_stride=self.fine_output_stride,
            learning_rate=self.fine_learning_rate or self.learning_rate / 10,
            steps=self.fine_steps or None,
            epochs=self.fine_epochs or None,
            warmup_steps=0,
            batch_norm="freeze",
        )
        return [first, fine]

    def __str__(self) -> str:
        values = {key: value for key, value in self.to_dict().items() if key != "name"}
        unused = ["momentum"] * (self.optimizer != "sgd") + ["power"] * (self.schedule != "poly")
        unused += ["class_weights_power"] * (self.class_weights is None)
        if len(self.stages()) == 1:
            unused += ["fine_output_stride", "fine_learning_rate"]
        return "\n".join(
            [
                f"Recipe {self.name}:",
                *(
                    f"  {k}: {v}"
                    for k, v in values.items()
                    if (v is False or v not in (None, {}, 0)) and k not in unused
                ),
            ]
        )
