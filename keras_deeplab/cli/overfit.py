"""`keras-deeplab train --overfit N`: whether the model can overfit N images, and if not, why."""

from __future__ import annotations

import argparse

import keras

import keras_deeplab
from keras_deeplab import data
from keras_deeplab.cli.recipe_options import open_recipe
from keras_deeplab.diagnosis import default_optimizer
from keras_deeplab.trainer.defaults import resized

# The values of a recipe that it uses, where they are set.
USED = {"batch_norm", "crop_size", "image_scale", "learning_rate"}
USED |= {"loss", "model", "output_stride"}
# Options of `train` besides the recipe that it does not use.
OF_TRAINING = ("distribute", "output", "steps_per_epoch", "tensorboard", "test_flip", "test_scales")


def overfit(options: argparse.Namespace) -> int:
    """Overfits a few images, with a loss and a learning rate for any model unless they are set."""
    builder, recipe, changes = open_recipe(options)
    given = {name for name in OF_TRAINING if getattr(options, name) not in (None, False, "none")}
    if unused := ", ".join(sorted(given | (set(changes) - USED))):
        used = ", ".join(sorted(USED))
        raise ValueError(f"--overfit uses {used} of a recipe. Received: {unused}.")
    source = resized(data.open_source(options.data), recipe)
    source.check_split("train")
    report = data.audit(source)
    print(report)
    keras.utils.set_random_seed(options.seed)
    crop_size = recipe.crop_size or report.splits["train"].smallest
    images = data.training_dataset(source, crop_size=crop_size, scales=(1.0, 1.0), cache=False)
    model = builder.build(source.info.num_classes, recipe, images, source.info.channels)
    if "batch_norm" in changes:
        keras_deeplab.batch_norm.set_policy(model, recipe.batch_norm)
    optimizer, loss = default_optimizer(model), None
    if "learning_rate" in changes:
        optimizer = keras.optimizers.AdamW(recipe.learning_rate, global_clipnorm=5.0)
    if "loss" in changes:
        loss = keras_deeplab.losses.parse(recipe.loss, optimizer=optimizer)
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
