"""After the last step: the best model is scored, pictured and exported."""

from __future__ import annotations

import argparse
import shutil
import time
from typing import Any

import keras
import numpy as np

import keras_deeplab
from keras_deeplab import data
from keras_deeplab.cli.options import with_test_time_augmentation
from keras_deeplab.evaluation import prediction_settings, scores_table
from keras_deeplab.files import atomic_write, stored_bytes, write_json, write_png
from training.run_folder import Record, RunFolder

PICTURES = 6


def finish(folder: RunFolder, source: data.Source, options: argparse.Namespace) -> None:
    """Scores the best model, on images it was not trained on if there are any; exports it."""
    start = time.perf_counter()
    split = "val" if "val" in source.splits else "train"
    best = folder.best_model
    if not best.exists():
        print(f"{best} is missing. Using {folder.last_model} instead.")
        with atomic_write(best, folder.last_model.stat().st_size) as aside:
            shutil.copyfile(folder.last_model, aside)
    record = Record.read(best)
    model = finished(keras_deeplab.load_model(best, compile=False), options)
    with atomic_write(best, stored_bytes(model)) as aside:
        model.save(aside)  # without the optimizer's state, three times the weights
        record.write(aside)
    dataset = data.evaluation_dataset(source, split)
    report = keras_deeplab.evaluate(model, dataset, class_names=source.info.classes)
    print(scores_table(report, split))
    if split == "train":
        print("There is no val split: these are scores on the images it was trained on.")
    write_png(folder.picture, pictures(model, dataset, source.info))
    keras_deeplab.export.saved_model(model, folder.saved_model, overwrite=True)
    write_json(folder.metrics, {"split": split, **prediction_settings(model), **report})
    folder.done()
    print(f"Scored and exported in {time.perf_counter() - start:.0f} s; see {folder.path}:")
    for path in (folder.best_model, folder.saved_model, folder.metrics, folder.picture):
        print(f"  {path}")


def finished(model: keras.Model, options: argparse.Namespace) -> keras.Model:
    """The model to use: it computes in float32, and sees the views it was asked to see."""
    if isinstance(model, keras_deeplab.MultiScale) and model.fusion == "mean":
        return model  # by an earlier start of this run; training makes no such model
    if options.mixed_precision is not None:
        model = model.with_dtype("float32")
    return with_test_time_augmentation(model, options.scales, options.flip)


def pictures(model: keras.Model, dataset: Any, info: data.DatasetInfo) -> np.ndarray:
    """A few photographs of a data set beside truth and prediction."""
    count = int(dataset.cardinality())
    every = max(1, count // PICTURES)
    chosen = [
        (np.uint8(images[0]), labels[0])
        for images, labels in dataset.shard(every, 0).take(PICTURES).as_numpy_iterator()
    ]
    return keras_deeplab.comparison_picture(
        [image for image, _ in chosen],
        [label for _, label in chosen],
        [keras_deeplab.predict(model, image) for image, _ in chosen],
        info.classes,
        info.colors,
    )
