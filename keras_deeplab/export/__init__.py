"""Exports of models in the formats of other runtimes, compared with the model."""

from __future__ import annotations

from keras_deeplab.export.classifier import classifier
from keras_deeplab.export.comparison import ExportError, Limits
from keras_deeplab.export.litert import litert
from keras_deeplab.export.onnx import onnx
from keras_deeplab.export.saved_model import saved_model

__all__ = ["ExportError", "Limits", "classifier", "litert", "onnx", "saved_model"]
