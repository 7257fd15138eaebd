"""Training by a recipe: `fit`."""

from keras_deeplab.trainer.building import MODELS, ModelBuilder
from keras_deeplab.trainer.fitting import FitResult, fit
from keras_deeplab.trainer.run_folder import RunFolder, next_free

__all__ = ["MODELS", "FitResult", "ModelBuilder", "RunFolder", "fit", "next_free"]
