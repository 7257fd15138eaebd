"""From images to label maps and probabilities: in windows, by rows, frame by frame."""

from keras_deeplab.inference.functions import Predictor, logits_spec, model_functions
from keras_deeplab.inference.pixels import ImageLike, open_picture, read_image
from keras_deeplab.inference.predicting import predict, predict_pixels

__all__ = [
    "ImageLike",
    "Predictor",
    "logits_spec",
    "model_functions",
    "open_picture",
    "predict",
    "predict_pixels",
    "read_image",
]
