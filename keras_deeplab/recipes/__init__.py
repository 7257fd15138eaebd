"""How the papers train, as plain data."""

from keras_deeplab.recipes.compiling import compile_model
from keras_deeplab.recipes.papers import RECIPES, get
from keras_deeplab.recipes.recipe import Recipe

__all__ = ["RECIPES", "Recipe", "compile_model", "get"]
