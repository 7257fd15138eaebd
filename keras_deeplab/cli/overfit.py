"""`keras-deeplab train --overfit N`: whether the model can overfit N images, and if not, why."""

from __future__ import annotations

import argparse
from typing import Any

import keras

import keras_deeplab
from keras_deeplab import data, recipes
from keras_deeplab.diagnosis import default_optimizer
from keras_deeplab.trainer import ModelBuilder

# The values of a recipe that it uses, where they are set.
USED = {"batch_norm", "crop_size", "learning_rate", "loss", "output_stride"}


def overfit(
    options: argparse.Namespace,
    builder: ModelBuilder,
    recipe: recipes.Recipe,
    changes: dict[str, Any],
) -> int:
    """Overfits a few images, with a loss and a learning rate for any model unless they are set."""
    unused = set(changes) - USED
    unused |= {"steps_per_epoch"} if options.steps_per_epoch is not None else set()
    if unused:
        raise ValueError(
            f"--overfit uses {', '.join(sorted(USED | {'model'}))} of a recipe. Received: "
            f"{', '.join(sorted(unused))}, which would have no effect."
        )
    source = data.open_source(options.data)
    report = data.audit(source)
    print(report)
    keras.utils.set_random_seed(options.seed)
    crop_size = recipe.crop_size or report.splits["train"].smallest
    images = data.training_dataset(source, crop_size=crop_size, scales=(1.0, 1.0), cache=False)
    model = builder.build(source.info.num_classes, recipe, images)
    if "batch_norm" in changes:
        keras_deeplab.batch_norm.set_policy(model, recipe.batch_norm)
    if "learning_rate" in changes:
        optimizer = keras.optimizers.AdamW(recipe.learning_rate, global_clipnorm=5.0)
    else:
        optimizer = default_optimizer(model)
    loss = (
        keras_deeplab.losses.parse(recipe.loss, optimizer=optimizer) if "loss" in changes else None
    )
    report = keras_deeplab.overfit(
        model,
        source,
        options.overfit,
        crop_size=changes.get("crop_size"),
        optimizer=optimizer,
        loss=loss,
    )
    print(report)
    return 0 if report.fits else 1
