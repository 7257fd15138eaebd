"""Options of a model and a recipe: `--learning-rate 0.01` or `--set learning_rate=0.01`."""

from __future__ import annotations

import argparse
import ast
import dataclasses
from contextlib import suppress
from pathlib import Path
from typing import Any

from keras_deeplab import backbones, recipes, validation
from keras_deeplab.cli.options import SIZE, file_path, height_and_width, one_of, positive
from keras_deeplab.names import key, suggestion
from keras_deeplab.recipes.papers import CHOICES, is_file
from keras_deeplab.trainer import MODELS, ModelBuilder
from keras_deeplab.trainer.building import PRECISIONS
from keras_deeplab.trainer.defaults import recipe_for

FIELDS = {field.name for field in dataclasses.fields(recipes.Recipe)} - {"name"}
RECIPE_HELP = (
    "a name, or a file such as run.json of a run or tuning.json of a search; default: finetune "
    "with --weights, else scratch; shapes for 'shapes'"
)
# An option with the name of a value of the recipe, but another meaning.
OTHERS = {"model"}
HINTS = {
    **{key(field): f"Give it as --set {field}=VALUE." for field in FIELDS},
    "resume": "The same command resumes a run that was stopped.",
}


def add_builder(parser: argparse.ArgumentParser) -> None:
    """Adds the options of a model that is built for the data."""
    add = parser.add_argument
    add("--model", **one_of(MODELS), help="default: that of --weights, or deeplab_v3_plus")
    names = one_of(backbones.NAMES)
    add("--backbone", **names, help="default: that of --weights, or of the model")
    add("--weights", help="file to start from, or name of published weights, such as imagenet")
    add("--mixed-precision", **one_of(PRECISIONS), help="default: float32")


def add_recipe(group: argparse._ArgumentGroup, steps_per_epoch: bool = True) -> None:
    """Adds the options of a recipe, and that of the steps per epoch."""
    add = group.add_argument
    add("--recipe", type=_recipe, metavar="|".join(CHOICES), help=RECIPE_HELP)
    add("--epochs", type=positive, help="number of epochs, in place of the steps")
    add("--steps", type=positive, help="number of steps, rounded up to whole epochs")
    if steps_per_epoch:
        add("--steps-per-epoch", type=positive, help="default: all images once, at most --steps")
    add("--batch-size", type=positive, help="over all replicas")
    add("--image-scale", type=float, help="such as 0.25 for photographs of 12 megapixels")
    add("--crop-size", **SIZE, help="one number for a square; default: from the images")
    add("--learning-rate", type=float)
    add("--output-stride", type=positive, help="in training; default: the model's")
    add("--loss", help="such as 'cross_entropy + 0.5 * lovasz_softmax(stride=4)'")
    add("--class-weights", **one_of(("median", "inverse")), help="from the frequency of classes")
    add(
        "--stage2-share", type=float, help="length of a second stage at output stride 8, as a share"
    )
    others = {"nargs": "+", "action": "extend", "default": [], "metavar": "NAME=VALUE"}
    add("--set", **others, help="any other value of the recipe")


def _recipe(text: str) -> str | Path:
    """The name of a recipe in any spelling, or the path of its file."""
    return file_path(text) if is_file(text) else one_of(CHOICES)["type"](text)


def open_recipe(
    options: argparse.Namespace,
) -> tuple[ModelBuilder, recipes.Recipe, dict[str, Any]]:
    """The builder of the model, the recipe, and the values of the recipe that are set."""
    changes = _changes(options)
    builder = ModelBuilder(
        options.model,
        backbone=options.backbone,
        weights=options.weights,
        mixed_precision=options.mixed_precision,
    )
    name = options.recipe or ("shapes" if options.data == "shapes" else None)
    recipe = recipe_for(builder, name)
    for name in changes.get("model", ()):  # a recipe's own are left out where a model lacks them
        if not builder.model_arguments:
            rule = f"left out: {options.weights} is a whole {builder.name}"
            raise validation.error("model", rule, changes["model"])
        validation.one_of("model", name, sorted(builder.model_arguments))
    if "model" in changes:
        changes["model"] = {**recipe.model, **changes["model"]}
    if "output_stride" in changes and not builder.has_output_stride:
        raise ValueError(f"--output-stride: {builder.name} has no output stride to choose.")
    return builder, recipe.replace(**changes), changes


def _changes(options: argparse.Namespace) -> dict[str, Any]:
    given = {name: getattr(options, name, None) for name in FIELDS - OTHERS}
    changes = {name: value for name, value in given.items() if value is not None}
    if "crop_size" in changes:
        changes["crop_size"] = height_and_width(changes["crop_size"])
    for text in options.set:
        name, equals, value = text.partition("=")
        if not equals or name not in FIELDS:
            meant = suggestion(name, FIELDS)
            known = "a value of the recipe" if meant else f"one of {', '.join(sorted(FIELDS))}"
            raise ValueError(f"--set must be NAME=VALUE with {known}. Received: {text!r}.{meant}")
        if name in changes:
            raise ValueError(f"`{name}` is set twice: {changes[name]!r} and {value}.")
        with suppress(ValueError, SyntaxError):
            value = ast.literal_eval(value)
        changes[name] = value
    if not isinstance(changes.get("model", {}), dict):
        raise validation.error("model", "a mapping of arguments", changes["model"])
    if changes.get("steps") and changes.get("epochs"):
        raise ValueError("One of `steps` and `epochs` must be set, not both.")
    return changes
