"""SavedModels of image classifiers, compared with the model."""

from __future__ import annotations

import os
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_deeplab.export.comparison import TIE, ExportError, built_in_images, whole_float32
from keras_deeplab.export.placing import verified_folder


def classifier(model: keras.Model, path: str | os.PathLike, overwrite: bool = False) -> Path:
    """Writes an image classifier as a SavedModel, and compares it with the model.

    The SavedModel is that of `model.export`: it takes float32 images `(batch, height, width,
    channels)` and returns logits. As in `saved_model`, it replaces `path` once compared.

    Args:
        model: Model from images of any size, or of one, to logits `(batch, num_classes)`.
        path: Folder of the SavedModel.
        overwrite: Whether an existing SavedModel is replaced.

    Returns:
        The path.

    Raises:
        FileExistsError, ExportError: As `saved_model` does.

    Example:

    >>> model = keras_deeplab.SPPNet(5, "alexnet", levels=(2, 1), dense=())
    >>> path = keras_deeplab.export.classifier(model, "classifier")
    """
    with verified_folder(path, overwrite) as temporary, whole_float32():
        model.export(temporary, verbose=False)
        served = tf.saved_model.load(str(temporary))
        for batch in built_in_images(model.input_shape):
            images = batch.astype("float32")
            expected, found = (tf.nn.softmax(f(images)).numpy() for f in (model, served.serve))
            difference = np.abs(found - expected).max()
            if not difference <= TIE:  # true for NaN
                raise ExportError(
                    f"{path}: at {batch.shape[1]}x{batch.shape[2]} probabilities differ from the "
                    f"model's by up to {difference:.3g}, more than the limit {TIE:g}"
                )
    return Path(path)
