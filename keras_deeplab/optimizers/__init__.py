"""Optimizers whose learning rate and weight decay differ between groups of variables."""

from keras_deeplab.optimizers.grouped import SGD, AdamW
from keras_deeplab.optimizers.groups import ParameterGroup, backbone, classifier, no_decay

__all__ = ["SGD", "AdamW", "ParameterGroup", "backbone", "classifier", "no_decay"]
