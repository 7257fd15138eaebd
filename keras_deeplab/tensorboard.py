"""What TensorBoard shows of a segmentation in training, beside Keras' own curves."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_deeplab.evaluation import pair_batches
from keras_deeplab.inference import logits_spec, predict
from keras_deeplab.labels import checked_ignore_label
from keras_deeplab.metrics import SegmentationMetrics, checked_names, key_of_class, scores
from keras_deeplab.pictures import Colors, comparison_picture, confusion_picture

GROUPS = {"per_class": "iou", "predicted_share": "predicted_share"}


def check_installed() -> None:
    """Raises an ImportError that says what to install, where the package tensorboard is not."""
    if importlib.util.find_spec("tensorboard") is None:
        raise ImportError(
            "TensorFlow writes TensorBoard's files only with the package tensorboard: "
            "pip install keras_deeplab[tensorboard]"
        )


class TensorBoard(keras.callbacks.TensorBoard):
    """Writes `keras.callbacks.TensorBoard`'s curves, and what a segmentation has besides.

    At the end of each epoch it writes, for training under `train` and for validation under
    `validation`:

    - `iou/NAME` and `predicted_share/NAME` of each class, named as in the logs and grouped, where
      Keras would write a chart of its own for each of them; a class without an IoU has no point.
      The curves of validation are there with `SegmentationMetrics(per_class=False)` too.
    - `confusion_matrix`, a picture of the validation images' confusion matrix, each row divided by
      its sum.
    - `predictions`, a picture of the same few images in every epoch beside truth and prediction.

    What is of validation needs `validation_data` in `fit` and a `SegmentationMetrics` in `compile`;
    the pictures of predictions need neither.

    Args:
        log_dir: Folder of the event files.
        dataset: Labelled images for the pictures, such as the validation data: a finite
            `tf.data.Dataset` of `(images, labels)`, or of single images and label maps. None for no
            pictures of predictions.
        class_names: One name per class, for the pictures; by default those of the
            `SegmentationMetrics`, or numbers.
        colors: One `(red, green, blue)` in 0..255 per class; PASCAL VOC's by default.
        num_pictures: How many images to show, taken from the whole data set at equal distances
            (the first ones, where its length is not known).
        picture_freq: Writes pictures every so many epochs.
        ignore_label: Label of the pixels that do not count, or None.
        **options: Arguments of `keras.callbacks.TensorBoard`; `write_graph` is False by default.

    Raises:
        ImportError: If the package tensorboard is not installed.
        ValueError: If a number is below 1, or the data set is endless or no pairs.

    Example:

    >>> report = keras_deeplab.TensorBoard("logs", dataset, class_names=["sky", "ground"])
    >>> model.fit(dataset, validation_data=dataset, callbacks=[report])
    """

    def __init__(
        self,
        log_dir: str | os.PathLike = "logs",
        dataset: tf.data.Dataset | None = None,
        class_names: Sequence[str] | None = None,
        colors: Colors | None = None,
        num_pictures: int = 4,
        picture_freq: int = 1,
        ignore_label: int | None = 255,
        **options: Any,
    ) -> None:
        check_installed()
        for name, value in (("num_pictures", num_pictures), ("picture_freq", picture_freq)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer from 1; received {value!r}")
        super().__init__(log_dir, **{"write_graph": False, **options})
        self.class_names = None if class_names is None else [str(name) for name in class_names]
        self.colors = colors
        self.picture_freq = picture_freq
        self.ignore_label = checked_ignore_label(ignore_label)
        self._examples = [] if dataset is None else _examples(dataset, num_pictures)
        self._confusion: np.ndarray | None = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Forgets what a call of `evaluate` left."""
        self._confusion = None
        super().on_train_begin(logs)

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """Keeps the confusion matrix of the validation; Keras writes what it writes."""
        metric = self._metric()
        if metric is not None:
            self._confusion = tf.convert_to_tensor(metric.confusion).numpy()
        super().on_test_end(self._others(logs))

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes what Keras writes, without the classes' entries."""
        super().on_train_batch_end(batch, self._others(logs))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes curves and pictures."""
        super().on_epoch_end(epoch, self._others(logs))
        metric, names = self._metric(), self._names()
        validated = self._confusion is not None and self._confusion.sum() > 0
        training, validation = self._curves(logs or {})
        if validated:  # logs may have no entries of single classes
            validation |= _curves_of(self._confusion, metric)
        pictures = {}
        if epoch % self.picture_freq == 0:
            if validated:
                pictures["confusion_matrix"] = confusion_picture(self._confusion, names)
            if self._examples:
                pictures["predictions"] = self._comparison(names)
        self._confusion = None  # an epoch without validation has none
        # Keras' own writers: TensorBoard follows one file in a folder, the newest.
        if training:
            with self._train_writer.as_default(epoch):
                _write_curves(training)
        if validation or pictures:
            with self._val_writer.as_default(epoch):
                _write_curves(validation)
                for name, picture in pictures.items():
                    tf.summary.image(name, picture[None])

    def _metrics(self) -> list[SegmentationMetrics]:
        """Returns the model's metrics that count a confusion matrix."""
        every = [inner for m in self.model.metrics for inner in (m, *getattr(m, "metrics", ()))]
        return [metric for metric in every if isinstance(metric, SegmentationMetrics)]

    def _metric(self) -> SegmentationMetrics | None:
        """Returns the first of them."""
        return next(iter(self._metrics()), None)

    def _of_a_class(self, entry: str) -> re.Match | None:
        """Takes an entry of the logs apart, if it is of a single class."""
        prefixes = "|".join(re.escape(metric.prefix) for metric in self._metrics())
        return re.fullmatch(rf"(val_)?({prefixes})(iou|predicted_share)_(.+)", entry)

    def _others(self, logs: Any) -> Any:
        """Returns logs without the entries of single classes."""
        if not isinstance(logs, dict):
            return logs
        return {name: value for name, value in logs.items() if not self._of_a_class(name)}

    def _curves(self, logs: dict[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
        """Returns the classes' entries of training and of validation, by their names in groups."""
        found: tuple[dict[str, float], dict[str, float]] = ({}, {})
        for name, value in logs.items():
            if match := self._of_a_class(name):
                found[match[1] is not None][f"{match[2]}{match[3]}/{match[4]}"] = float(value)
        return found

    def _names(self) -> list[str]:
        metric = self._metric()
        names = self.class_names
        if names is None and metric is not None:
            names = metric.class_names
        return checked_names(logits_spec(self.model)[1], names)

    def _comparison(self, names: Sequence[str]) -> np.ndarray:
        """Returns the picture of the same images with what the model says of them now."""
        images, truths = zip(*self._examples, strict=True)
        predictions = [predict(self.model, image) for image in images]
        return comparison_picture(
            images, truths, predictions, names, self.colors, self.ignore_label
        )


def _examples(dataset: tf.data.Dataset, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Reads a few pairs `(height, width, channels)` and `(height, width)` of a data set."""
    dataset = pair_batches(dataset)
    batches = int(dataset.cardinality())  # below 0 if unknown: the first images then
    every, each = (max(1, batches // count), -(-count // batches)) if batches > 0 else (1, count)
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for images, labels in dataset.shard(every, 0).as_numpy_iterator():
        maps = labels[..., 0] if labels.ndim == 4 else labels
        found += list(zip(images, maps, strict=True))[:each]
        if len(found) >= count:
            break
    return found[:count]


def _curves_of(confusion: np.ndarray, metric: SegmentationMetrics) -> dict[str, float]:
    """Returns a confusion matrix's scores of each class, named as those in logs are."""
    report = scores(confusion, metric.class_names)
    keys = [key_of_class(name) for name in report["per_class"]]
    return {
        f"{metric.prefix}{group}/{key}": np.nan if value is None else value
        for entry, group in GROUPS.items()
        for key, value in zip(keys, report[entry].values(), strict=True)
    }


def _write_curves(curves: dict[str, float]) -> None:
    for name, value in curves.items():
        if not np.isnan(value):
            tf.summary.scalar(name, value)
