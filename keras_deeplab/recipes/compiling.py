"""From a recipe to a compiled model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_deeplab import batch_norm, losses, optimizers
from keras_deeplab.metrics import SegmentationMetrics
from keras_deeplab.recipes.recipe import Recipe
from keras_deeplab.schedules import PolynomialDecay


def compile_model(
    model: keras.Model,
    recipe: Recipe,
    *,
    total_steps: int,
    class_names: Sequence[str],
    class_weights: Sequence[float] | None = None,
    synchronized: bool | None = None,
) -> None:
    """Compiles a model with the optimizer, loss and batch-norm policy of a recipe.

    The recipe's values for the data and for the model's arguments are not used here; `fit` applies
    the whole recipe.

    Args:
        model: A segmentation model; compiled in place.
        recipe: The recipe of one stage (`Recipe.stages`).
        total_steps: Optimizer steps of the stage, the length of the schedule.
        class_names: One name per class.
        class_weights: One weight per class, of `losses.class_weights`.
        synchronized: Whether batch norms share their statistics across replicas; None leaves them.

    Raises:
        ValueError: If the loss cannot be parsed, or the model has no such batch-norm policy.

    Example:

    >>> model = keras_deeplab.DeepLabV3Plus(2, "mobilenet_v2")
    >>> recipe = keras_deeplab.recipes.get("v3_plus").replace(steps=1_000)
    >>> keras_deeplab.recipes.compile_model(
    ...     model, recipe, total_steps=1_000, class_names=["ground", "car"]
    ... )
    """
    momentum = batch_norm.momentum_for(total_steps, recipe.batch_norm_memory)
    policy = None if recipe.batch_norm == "train" else recipe.batch_norm
    batch_norm.set_policy(model, policy, momentum=momentum, synchronized=synchronized)
    optimizer = _optimizer(model, recipe, total_steps)
    model.compile(
        optimizer,
        loss=losses.parse(recipe.loss, class_weights=class_weights, optimizer=optimizer),
        metrics=[SegmentationMetrics(len(class_names), class_names)],
    )


def _optimizer(model: keras.Model, recipe: Recipe, total_steps: int) -> keras.optimizers.Optimizer:
    groups = optimizers.no_decay(model)
    factors = recipe.classifier_lr_multiplier, recipe.classifier_bias_lr_multiplier
    if factors != (1, 1):
        groups += optimizers.classifier(model, *factors)
    if recipe.backbone_lr_multiplier != 1:
        groups += optimizers.backbone(model, recipe.backbone_lr_multiplier)
    trained = [variable.path for variable in model.trainable_variables]
    groups = [group for group in groups if any(map(group.matches, trained))]
    shared: dict[str, Any] = {
        "weight_decay": recipe.weight_decay,
        "global_clipnorm": recipe.clipnorm,
        "groups": groups,
    }
    rate = _schedule(recipe, total_steps)
    if recipe.optimizer == "sgd":
        return optimizers.SGD(rate, momentum=recipe.momentum, **shared)
    return optimizers.AdamW(rate, **shared)


def _schedule(recipe: Recipe, total_steps: int) -> keras.optimizers.schedules.LearningRateSchedule:
    if recipe.schedule == "step":
        # V1: every 2,000 of 6,000 steps.
        return keras.optimizers.schedules.ExponentialDecay(
            recipe.learning_rate, max(1, total_steps // 3), 0.1, staircase=True
        )
    warmup = min(round(recipe.warmup_share * total_steps), total_steps - 1)
    return PolynomialDecay(
        recipe.learning_rate, total_steps, power=recipe.power, warmup_steps=warmup
    )
