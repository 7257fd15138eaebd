"""From the command line's options to the model that is trained."""

from __future__ import annotations

import argparse
import inspect
from typing import Any

import keras
import tensorflow as tf

import keras_deeplab
from keras_deeplab import backbones, data
from keras_deeplab.batch_norm import all_norms
from keras_deeplab.cli.options import MODELS
from keras_deeplab.recipes import Recipe

UNFOLDING_BATCHES = 8
OWN_BACKBONES = {"deeplab_v1": "vgg16", "unet": None}


def start(options: argparse.Namespace) -> keras_deeplab.weights.Checkpoint | None:
    """The weights to start from; model and backbone are those that they want, unless given."""
    names = {model.__name__: name for name, model in MODELS.items()}
    source, has_network = None, False
    if options.weights is not None and not options.weights.endswith(".weights.h5"):
        backbone = options.backbone or OWN_BACKBONES.get(options.model, "mobilenet_v2")
        name = MODELS[options.model].__name__ if options.model else None
        source = keras_deeplab.weights.open_source(options.weights, name, backbone)
        options.model = options.model or names.get(source.model)
        options.backbone = options.backbone or source.backbone
        # One that is no backbone by name comes with the weights of a model of this class.
        has_network = source.backbone is None and names.get(source.model, "") == options.model
    options.model = options.model or "deeplab_v3_plus"
    if options.backbone is None and not has_network:
        options.backbone = OWN_BACKBONES.get(options.model, "mobilenet_v2")
    return source


def build(
    options: argparse.Namespace,
    recipe: Recipe,
    info: data.DatasetInfo,
    source: keras_deeplab.weights.Checkpoint | None,
) -> keras.Model:
    """The model, with the weights it is to start from."""
    model_class = MODELS[options.model]
    known = inspect.signature(model_class).parameters
    arguments: dict[str, Any] = {}
    if source is None or source.model != model_class.__name__:
        arguments = {key: value for key, value in recipe.model.items() if key in known}
        if "separable" in known:
            arguments.setdefault("separable", backbones.find(options.backbone).separable)
    if options.mixed_precision is not None:
        arguments["dtype"] = f"mixed_{options.mixed_precision}"
    if options.output_stride is not None and "output_stride" not in known:
        raise ValueError(
            f"--output-stride: {options.model} has none to set, received {options.output_stride}."
        )
    if recipe.output_stride is not None and "output_stride" in known:
        arguments["output_stride"] = recipe.output_stride
    if options.backbone is not None:
        arguments["backbone"] = options.backbone
    model = model_class(info.num_classes, weights=source, **arguments)
    if options.weights is not None and source is None:
        keras_deeplab.weights.load(model, options.weights)
    return model


def check_frozen_norms(model: keras.Model, recipe: Recipe, weights: str | None) -> None:
    """Refuses to freeze batch norms that have seen nothing: such a network can learn nothing.

    Args:
        model: As it is built.
        recipe: Of the first stage.
        weights: What the model starts from, if anything.

    Raises:
        ValueError: If they are frozen and there are no weights.
    """
    if weights is None and recipe.batch_norm != "train" and all_norms(model):
        raise ValueError(
            f"The recipe {recipe.name} has batch_norm {recipe.batch_norm!r}, which needs trained "
            "statistics: give --weights, or --set batch_norm=train."
        )


def unfold(
    model: keras.Model, source: keras_deeplab.weights.Checkpoint | None, images: tf.data.Dataset
) -> None:
    """Gives batch norms that were folded away in a file of weights statistics of the data."""
    if source is not None and source.folded:
        count = keras_deeplab.weights.unfold_batch_norms(model, images.take(UNFOLDING_BATCHES))
        print(f"{count} batch norms had been folded away: they took statistics from the data")
