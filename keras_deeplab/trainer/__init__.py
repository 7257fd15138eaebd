"""Training by a recipe: `fit`."""

from keras_deeplab.trainer.building import MODELS, ModelBuilder
from keras_deeplab.trainer.cost import TrainingCost, training_cost
from keras_deeplab.trainer.fitting import FitResult, fit
from keras_deeplab.trainer.run_folder import RunFolder, next_free

__all__ = [
    "MODELS",
    "FitResult",
    "ModelBuilder",
    "RunFolder",
    "TrainingCost",
    "fit",
    "next_free",
    "training_cost",
]
