"""The values that a recipe leaves to the model and the data."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

import keras

from keras_deeplab import data, recipes, validation
from keras_deeplab.losses.summing import takes_class_weights
from keras_deeplab.models import SegmentationModel, UNet
from keras_deeplab.models.multi_scale import unwrapped
from keras_deeplab.recipes import Recipe
from keras_deeplab.trainer.building import ModelBuilder

logger = logging.getLogger(__name__)


def resized(source: data.Source, recipe: Recipe) -> data.Source:
    """The images of a source at the scale at which a recipe trains."""
    return source if recipe.image_scale == 1 else data.Resized(source, recipe.image_scale)


def source_name(source: data.Source | str | os.PathLike) -> str:
    """The name of a source in the settings of a run: its path, or its type."""
    if isinstance(source, data.Folder):
        source = getattr(source, "path", source.root)  # of a list its file
    if not isinstance(source, str | os.PathLike):
        return type(source).__name__
    path = os.fspath(source)
    return path if "://" in path else os.path.normpath(path)


def recipe_for(
    model: keras.Model | ModelBuilder, recipe: Recipe | str | os.PathLike | None
) -> Recipe:
    """The recipe of a name for a model, that of a file, or the default one."""
    if not isinstance(recipe, Recipe):
        is_random = isinstance(model, ModelBuilder) and model.weights is None
        recipe = recipes.get(recipe or ("scratch" if is_random else "finetune"), _network(model))
    if takes_class_weights(recipe.loss) or recipe.class_weights is None:
        return recipe
    logger.warning("The loss %s takes no class weights: they are left out.", recipe.loss)
    return recipe.replace(class_weights=None)


def _network(model: keras.Model | ModelBuilder) -> str | None:
    """Network name that selects the overrides of a recipe (`recipes.get`)."""
    if isinstance(model, ModelBuilder):
        return model.network
    model = unwrapped(model)
    backbone = model.get_config()["backbone"] if isinstance(model, SegmentationModel) else None
    if backbone is None and isinstance(model, UNet):
        return "unet"
    return backbone if isinstance(backbone, str) else None


def for_data(recipe: Recipe, train: data.SplitReport, classes: Sequence[str]) -> Recipe:
    """Sets the values that a recipe leaves to the data.

    The crop size is between the smallest and the largest image's; the classes that are pasted are
    the rarer half.
    """
    if recipe.crop_size is None:
        recipe = recipe.replace(crop_size=train.crop_size)
    if recipe.copy_paste and recipe.copy_paste_classes is None:
        present = [number for number, share in enumerate(train.class_share) if share]
        rare = sorted(present, key=lambda number: train.class_share[number])
        names = [classes[number] for number in rare[: max(1, len(rare) // 2)]]
        recipe = recipe.replace(copy_paste_classes=names)
    for name in recipe.copy_paste_classes or ():
        validation.one_of("copy_paste_classes", name, classes)
    return recipe
