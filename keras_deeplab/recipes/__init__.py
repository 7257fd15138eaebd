"""How the papers train, as plain data."""

from keras_deeplab.recipes.compiling import compile_model
from keras_deeplab.recipes.papers import (
    BACKBONES,
    FINETUNE,
    RECIPES,
    SHAPES,
    V1,
    V2,
    V3,
    V3_PLUS,
    find,
)
from keras_deeplab.recipes.recipe import Recipe

__all__ = [
    "BACKBONES",
    "FINETUNE",
    "RECIPES",
    "SHAPES",
    "V1",
    "V2",
    "V3",
    "V3_PLUS",
    "Recipe",
    "compile_model",
    "find",
]
