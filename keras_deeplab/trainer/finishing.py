"""The end of a run: the best model is scored, exported and reported."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_deeplab import data, export
from keras_deeplab.data.source import evenly_spaced
from keras_deeplab.evaluation import evaluate, prediction_settings
from keras_deeplab.files import atomic_write, stored_bytes, write_json, write_png, write_text
from keras_deeplab.inference import predict
from keras_deeplab.models.multi_scale import (
    at_image_scale,
    unwrapped,
    with_test_time_augmentation,
)
from keras_deeplab.pictures import comparison_picture
from keras_deeplab.trainer.run_folder import Record, RunFolder
from keras_deeplab.trainer.run_page import run_page
from keras_deeplab.weights import load_model

logger = logging.getLogger(__name__)

PICTURES = 6


def final_model(
    model: keras.Model,
    test_scales: Sequence[float] | None = None,
    test_flip: bool = False,
    image_scale: float = 1.0,
) -> keras.Model:
    """The trained model for inference: in float32, for images of the original size.

    Test-time augmentation is added if there is any.
    """
    if model.dtype_policy.name.startswith("mixed_") and hasattr(unwrapped(model), "with_dtype"):
        model = model.with_dtype("float32")
    return with_test_time_augmentation(at_image_scale(model, image_scale), test_scales, test_flip)


def finish(
    model: keras.Model,
    source: data.Source,
    folder: RunFolder | None = None,
    test_scales: Sequence[float] | None = None,
    test_flip: bool = False,
    image_scale: float = 1.0,
    verbose: int = 1,
) -> tuple[keras.Model, dict[str, Any]]:
    """Makes and scores the final model: of a folder the best one, which is also exported there.

    Without a folder `model` is taken, the one after the last step. The scores are those on `val`,
    or on `train` if there is no `val`.
    """
    start = time.perf_counter()
    if folder is not None:
        model, record = _best_model(folder)
    model = final_model(model, test_scales, test_flip, image_scale)
    if folder is not None:
        with atomic_write(folder.best_model, stored_bytes(model)) as temporary:
            model.save(temporary)  # without the optimizer's state, three times the weights
            record.write(temporary)
    split = "val" if "val" in source.splits else "train"
    if split == "train":
        logger.warning("There is no val split: the scores are on the images of the training.")
    dataset = data.evaluation_dataset(source, split, cache=False)  # read once
    names = {"class_names": source.info.classes, "image_names": source.names(split)}
    more = dict.fromkeys(("calibration", "confusion"), folder is not None)  # for its report
    report = evaluate(model, dataset, verbose=verbose, **names, **more)
    logger.info("Mean IoU on %s: %.3f", split, report["mean_iou"])
    scores = {"split": split, **prediction_settings(model), **report}
    if folder is not None:
        write_png(folder.picture, _picture(model, source, split))
        _export(model, folder, source.info)
        _write_report(folder, scores, model, source)
        write_json(folder.metrics, scores)
        logger.info("Scored and exported in %.0f s", time.perf_counter() - start)
    return model, scores


def _export(model: keras.Model, folder: RunFolder, info: data.DatasetInfo) -> None:
    """Writes the SavedModel; a run whose export fails keeps its scores."""
    try:
        export.saved_model(model, folder.saved_model, overwrite=True, info=info)
    except (export.ExportError, ValueError) as failure:  # other files may be in the folder
        logger.warning("%s is not written: %s", folder.saved_model, failure)


def _write_report(
    folder: RunFolder, scores: dict[str, Any], model: keras.Model, source: data.Source
) -> None:
    """Writes the report; without it the run is complete all the same."""
    try:
        write_text(folder.report, run_page(folder, scores, model, source))
    except Exception:  # of the drawings, of any library
        logger.warning("%s could not be written.", folder.report, exc_info=True)


def _best_model(folder: RunFolder) -> tuple[keras.Model, Record]:
    path = folder.best_model
    if not path.exists():
        logger.warning("%s is missing. Using %s instead.", path, folder.last_model)
        path = folder.last_model
    return load_model(path, compile=False), Record.read(path)


def few_images(source: data.Source, split: str) -> tf.data.Dataset:
    """Some images of a split, at equal distances, with their label maps."""
    numbers = evenly_spaced(len(source.names(split)), PICTURES)
    return source.checked_dataset(split, tf.data.Dataset.from_tensor_slices(numbers))


def _picture(model: keras.Model, source: data.Source, split: str) -> np.ndarray:
    images, truths = zip(*few_images(source, split).as_numpy_iterator(), strict=True)
    predictions = [predict(model, image) for image in images]
    return comparison_picture(images, truths, predictions, source.info.classes, source.info.colors)
