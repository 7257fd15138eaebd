"""Losses on label maps with pixels that do not count, and weights for classes that are rare."""

from keras_deeplab.losses.balancing import class_weights, shares_to_weights
from keras_deeplab.losses.cross_entropy import CrossEntropy
from keras_deeplab.losses.dice import Dice
from keras_deeplab.losses.focal import Focal
from keras_deeplab.losses.hard_pixels import HardPixelMining
from keras_deeplab.losses.lovasz import LovaszSoftmax
from keras_deeplab.losses.parsing import parse
from keras_deeplab.losses.weighted_sum import Sum

__all__ = [
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
