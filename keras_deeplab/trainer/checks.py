"""Checks of model, data and callbacks before a training, and its warnings."""

from __future__ import annotations

import logging
import math
from contextlib import suppress
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_deeplab import data, validation
from keras_deeplab.analysis import live_taps
from keras_deeplab.graph.network import all_norms
from keras_deeplab.inference import logits_spec, warn_of_softmax
from keras_deeplab.metrics import checked_names, key_of_class
from keras_deeplab.models import MultiScale, SegmentationModel
from keras_deeplab.models.multi_scale import unwrapped
from keras_deeplab.recipes import Recipe
from keras_deeplab.trainer.building import ModelBuilder

logger = logging.getLogger(__name__)

SMALL_CROP, LONG_SIDE = 0.1, 1024  # share of an image, and a side in pixels of a good one


def checked_callbacks(callbacks: Any) -> list[keras.callbacks.Callback]:
    """Returns callbacks as a list; one that does what `fit` does itself is a ValueError."""
    kinds = keras.callbacks
    rates = kinds.LearningRateScheduler | kinds.ReduceLROnPlateau
    done_by = {
        rates: "its recipe has `learning_rate` and `schedule`",
        kinds.BackupAndRestore: "the same call resumes a run in `run_dir`",
    }
    callbacks = [] if callbacks is None else keras.tree.flatten(callbacks)
    for callback in callbacks:
        if not isinstance(callback, kinds.Callback):
            raise validation.error("callbacks", "a list of Keras callbacks", callback)
        for forbidden, advice in done_by.items():
            if isinstance(callback, forbidden):
                rule = f"without a {type(callback).__name__}: {advice}"
                raise validation.error("callbacks", rule, callback)
    return callbacks


def check_model(
    model: keras.Model | ModelBuilder,
    recipe: Recipe,
    info: data.DatasetInfo,
    strategy: tf.distribute.Strategy,
) -> None:
    """Raises a ValueError if a model cannot be trained by a recipe on a data set."""
    if isinstance(model, ModelBuilder):
        model.check(recipe)
        policy = f"mixed_{model.mixed_precision}"
    elif recipe.stage2_share and not hasattr(model, "with_output_stride"):
        rule = "a model with `with_output_stride` for a recipe with two stages"
        raise validation.error("model", rule, type(model).__name__)
    else:
        policy = model.dtype_policy.name
        if recipe.image_scale != 1 and isinstance(model, MultiScale):
            rule = "the network inside, `model.model`, with an `image_scale`"
            raise validation.error("model", rule, model)
        spec, num_classes = logits_spec(model)
        if num_classes != info.num_classes:
            rule = f"a model of {info.num_classes} classes, as many as the source has"
            raise validation.error("model", rule, model.output_shape)
        if spec.shape[-1] != info.channels:
            rule = f"a model of {info.channels} channels, as many as the source's images have"
            raise validation.error("model", rule, model.input_shape)
        if not model.trainable_weights:
            raise validation.error("model", "a model with weights that are not frozen", model)
        warn_of_softmax(model)
    if info.num_classes < 2:
        raise validation.error("source", "a data set of two classes or more", info.classes)
    checked_names(info.num_classes, [key_of_class(name) for name in info.classes])
    replicas = strategy.num_replicas_in_sync
    if recipe.batch_size % replicas:
        rule = f"divisible by the number of replicas, {replicas}"
        raise validation.error("batch_size", rule, recipe.batch_size)
    built_under = strategy if isinstance(model, ModelBuilder) else model._distribute_strategy
    if replicas > 1 and built_under is not strategy:
        advice = "Build it inside `with strategy.scope():`"
        raise validation.error("model", "built under the strategy", model, advice)
    if policy == "mixed_float16" and replicas > 1:
        raise ValueError(
            "float16 does not work with several replicas: Keras scales the loss by what one "
            "replica computes. Use bfloat16."
        )


def check_input_size(model: keras.Model, recipe: Recipe, report: data.Report) -> None:
    """Raises a ValueError if crops or whole images have a size that a model does not take.

    Its input may have a fixed size, and a network of one's own logits smaller than the image.
    """
    sides = logits_spec(model)[0].shape[1:3]
    split = "val" if "val" in report.splits else "train"  # of the scores
    scored, found = report.splits[split], {"crop_size": recipe.crop_size}
    found |= {f"smallest of {split}": scored.smallest, f"largest of {split}": scored.largest}
    if wrong := {what: size for what, size in found.items() if not sides.is_compatible_with(size)}:
        rule = f"of any input size, or have crops and images of its {tuple(sides)}"
        raise validation.error("model", rule, wrong)
    if isinstance(unwrapped(model), SegmentationModel):
        return
    network = keras.Model(model.inputs[0], model.outputs[0])  # of a list or dict of one output
    for what, size in found.items():
        logits = network.compute_output_shape((1, *size, model.inputs[0].shape[-1]))[1:3]
        if not tf.TensorShape(logits).is_compatible_with(size):
            rule = f"one whose logits have the size of the image, {size} of {what}"
            raise validation.error("model", rule, logits, "End it with `layers.ResizeLike`")


def check_frozen_norms(model: keras.Model, recipe: Recipe) -> None:
    """Raises a ValueError if batch norms without statistics would be frozen."""
    norms = all_norms(model).values()
    if recipe.batch_norm == "train" or not norms:
        return
    statistics = [(np.asarray(n.moving_mean), np.asarray(n.moving_variance)) for n in norms]
    if all(np.all(mean == 0) and np.all(variance == 1) for mean, variance in statistics):
        raise ValueError(
            f"The recipe {recipe.name} has batch_norm {recipe.batch_norm!r}, which needs trained "
            "statistics: start from `weights`, or replace batch_norm by 'train'."
        )


def warn_of_padding(model: keras.Model, crop_size: tuple[int, int]) -> None:
    """Logs a warning if the crop is so small that atrous convolutions of the head become 1x1.

    In figure 4 of the DeepLabV3 paper the positions at which only the centre of a 3x3 kernel is on
    the map become the majority at a rate of 0.85 times the side of the map; the papers' own rates
    are at most 0.6 times the side of theirs.
    """
    found = []
    with suppress(ValueError):  # a model whose geometry is not known
        inside = f"{model.backbone.name}/" if hasattr(model, "backbone") else "/"
        found = [
            taps
            for taps in live_taps(model, *crop_size)
            if taps.positions.get(1, 0) > 0.5 and not taps.name.startswith(inside)
        ]
    if found:
        rates = ", ".join(dict.fromkeys(str(max(taps.rate)) for taps in found))
        height, width = found[0].map_size
        logger.warning(
            "Crops of %dx%d become feature maps of %dx%d, on which the atrous rates %s act mostly "
            "as 1x1 convolutions: their other taps are in the padding. Set a larger `crop_size` or "
            "smaller `aspp_rates`.",
            *crop_size[::-1],
            width,
            height,
            rates,
        )


def warn_of_small_crops(train: data.SplitReport, recipe: Recipe) -> None:
    """Logs a warning if crops are small parts of large images, as of a phone's photographs."""
    height, width = recipe.crop_size
    share = height * width / math.prod(train.largest)
    reduction = round(max(train.largest) / LONG_SIDE)
    if recipe.image_scale > 4 and share < SMALL_CROP:  # perhaps a percentage
        logger.warning(
            "The recipe's image_scale=%g enlarges the images to up to %dx%d. For a quarter of "
            "height and width it is 0.25.",
            *(recipe.image_scale, *train.largest[::-1]),
        )
    elif share < SMALL_CROP and reduction > 1:
        logger.warning(
            "Crops of %dx%d are %.2g %% of images of up to %dx%d. Photographs are better reduced, "
            "with the recipe's image_scale=%.2g: the final model takes them at their own size.",
            *(width, height, 100 * share, *train.largest[::-1], recipe.image_scale / reduction),
        )
