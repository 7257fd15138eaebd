"""The first test of a training: can the model fit a few images at all?"""

from keras_deeplab.overfitting.fitting import overfit
from keras_deeplab.overfitting.report import Check, OverfitReport

__all__ = ["Check", "OverfitReport", "overfit"]
