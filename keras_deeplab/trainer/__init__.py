"""Training by a recipe: `fit`; its runs side by side: `compare`; `tune`."""

from keras_deeplab.trainer.building import MODELS, ModelBuilder
from keras_deeplab.trainer.cost import TrainingCost, training_cost
from keras_deeplab.trainer.fitting import FitResult, fit
from keras_deeplab.trainer.run_comparison import Comparison, compare
from keras_deeplab.trainer.run_data import RunData, open_run
from keras_deeplab.trainer.run_folder import RunFolder, next_free
from keras_deeplab.trainer.tuning import Trial, TuningResult, tune

__all__ = [
    "MODELS",
    "Comparison",
    "FitResult",
    "ModelBuilder",
    "RunData",
    "RunFolder",
    "TrainingCost",
    "Trial",
    "TuningResult",
    "compare",
    "fit",
    "next_free",
    "open_run",
    "training_cost",
    "tune",
]
