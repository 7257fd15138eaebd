"""How the papers train, as plain data, and what makes a model train like that."""

from keras_deeplab.recipes.compiling import compile_model
from keras_deeplab.recipes.papers import FINETUNE, RECIPES, V1, V2, V3, V3_PLUS, find
from keras_deeplab.recipes.recipe import Recipe

__all__ = ["FINETUNE", "RECIPES", "V1", "V2", "V3", "V3_PLUS", "Recipe", "compile_model", "find"]
