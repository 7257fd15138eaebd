"""Optimizers whose learning rate and weight decay differ between groups of variables."""

from keras_deeplab.optimizers.adamw import AdamW
from keras_deeplab.optimizers.of_models import backbone, classifier, no_decay
from keras_deeplab.optimizers.parameter_group import ParameterGroup
from keras_deeplab.optimizers.sgd import SGD

__all__ = ["SGD", "AdamW", "ParameterGroup", "backbone", "classifier", "no_decay"]
