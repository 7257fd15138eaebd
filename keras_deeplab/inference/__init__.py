"""From images to label maps and probabilities: in windows, by rows, frame by frame."""

from keras_deeplab.inference.functions import (
    Predictor,
    bytes_per_pixel,
    logits_of,
    logits_spec,
    model_functions,
    warn_of_non_finite,
    warn_of_softmax,
)
from keras_deeplab.inference.pixels import ImageLike, open_picture, read_image
from keras_deeplab.inference.predicting import predict, predict_kept, predict_pixels

__all__ = [
    "ImageLike",
    "Predictor",
    "bytes_per_pixel",
    "logits_of",
    "logits_spec",
    "model_functions",
    "open_picture",
    "predict",
    "predict_kept",
    "predict_pixels",
    "read_image",
    "warn_of_non_finite",
    "warn_of_softmax",
]
