"""Losses on label maps with ignored pixels, and class weights for rare classes."""

from keras_deeplab.losses.class_weighting import class_weights, shares_to_weights
from keras_deeplab.losses.pixel import CrossEntropy, Focal, HardPixelMining
from keras_deeplab.losses.region import Dice, LovaszSoftmax
from keras_deeplab.losses.summing import LOSSES, Sum, parse

__all__ = [
    "LOSSES",
    "CrossEntropy",
    "Dice",
    "Focal",
    "HardPixelMining",
    "LovaszSoftmax",
    "Sum",
    "class_weights",
    "parse",
    "shares_to_weights",
]
