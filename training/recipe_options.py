"""From the command line's options to the recipe that is trained."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import inspect
from collections.abc import Mapping
from typing import Any

from keras_deeplab import data, recipes
from keras_deeplab.cli.options import MODELS
from keras_deeplab.names import suggestion
from training.fitting import LARGEST_CROP

# The values of a recipe that `--set` takes.
FIELDS = {field.name for field in dataclasses.fields(recipes.Recipe)} - {"name"}
# Options of the same name as a value of the recipe, and of another meaning.
NOT_GIVEN = {"model", "scales", "flip"}
# Arguments of a model that are no part of a recipe's `model`.
SAID_APART = {
    "num_classes": "the data",
    "backbone": "--backbone",
    "weights": "--weights",
    "output_stride": "--output-stride",
    "dtype": "--mixed-precision",
}


def of_the_file(recipe: recipes.Recipe, options: argparse.Namespace) -> recipes.Recipe:
    """The recipe for a model that is built as its file of weights says."""
    arguments = [text for text in options.set if text.startswith("model=")]
    if arguments:
        raise ValueError(
            f"--set {arguments[0]} is not possible: --weights holds a whole {options.model}, whose "
            "arguments are the file's."
        )
    return recipe.replace(model={})


def chosen_recipe(options: argparse.Namespace, report: data.Report) -> recipes.Recipe:
    """The recipe with what the command line and the data say.

    Arguments of the model join those of the recipe.

    Raises:
        ValueError: If a value is out of its range or given twice, or the model lacks an argument.
    """
    recipe = recipes.find(options.recipe, options.backbone)
    if options.recipe == "finetune":
        if norm_free(options):
            recipe = recipe.replace(learning_rate=3e-4)
        if options.data == "shapes":
            # Drawn in all sizes and colours, no class rare or thin: the rest only costs time.
            still = {"scales": (1.0, 1.0), "color_jitter": None, "class_focus": 0.0}
            even = {"class_weights": None, "loss": "cross_entropy + 0.5 * lovasz_softmax(stride=4)"}
            recipe = recipe.replace(epochs=5, **still, **even)
            if not norm_free(options):
                recipe = recipe.replace(learning_rate=6e-3)
    changes = given(options)
    if isinstance(changes.get("model"), Mapping):
        _check_arguments(options.model, changes["model"])
        changes["model"] = {**recipe.model, **changes["model"]}
    recipe = recipe.replace(**changes)
    if recipe.crop_size is None:
        part = report.splits["train"]
        middle = [(low + high) // 2 for low, high in zip(part.smallest, part.largest, strict=True)]
        recipe = recipe.replace(crop_size=tuple(min(side, LARGEST_CROP) for side in middle))
    return recipe


def given(options: argparse.Namespace) -> dict[str, Any]:
    """The values of the recipe that the command line gives, by `--set` or an option of their own.

    Raises:
        ValueError: If one is given twice, or `--set` names none.
    """
    own = {key: value for key, value in vars(options).items() if key in FIELDS - NOT_GIVEN}
    said = {key: value for key, value in own.items() if value is not None}
    for name, value in (_setting(text) for text in options.set):
        if name in said:
            raise ValueError(f"`{name}` is given twice: {said[name]!r} and {value!r}.")
        said[name] = value
    return said


def norm_free(options: argparse.Namespace) -> bool:
    """Whether the network has no batch norm, so that it takes smaller steps only."""
    return options.backbone == "vgg16" or (options.model, options.backbone) == ("unet", None)


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or name not in FIELDS:
        raise ValueError(
            f"--set must be NAME=VALUE with one of {', '.join(sorted(FIELDS))}, received {text!r}."
            f"{suggestion(name, FIELDS)}"
        )
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _check_arguments(model: str, arguments: Mapping[str, Any]) -> None:
    """Refuses arguments that the model does not have: a recipe's own would be left out silently."""
    known = [name for name in inspect.signature(MODELS[model]).parameters if name not in SAID_APART]
    for name in arguments:
        if name in SAID_APART:
            raise ValueError(f"--set model: {name!r} is said by {SAID_APART[name]}.")
        if name not in known:
            close = difflib.get_close_matches(str(name), known) or known
            raise ValueError(
                f"--set model: {model} has no argument {name!r}; there is {', '.join(close)}."
            )
