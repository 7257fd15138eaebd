"""TensorBoard curves and pictures of a segmentation model in training."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_deeplab.evaluation import pair_batches
from keras_deeplab.extras import require
from keras_deeplab.inference import logits_spec, predict
from keras_deeplab.metrics import SegmentationMetrics
from keras_deeplab.pictures import Colors, comparison_picture, confusion_picture
from keras_deeplab.validation import integer, integers

_CLASS_METRICS = ("iou", "predicted_share")
Logs = dict[str, Any] | None


def check_installed() -> None:
    """Raises an ImportError if the package tensorboard is missing."""
    require("writing TensorBoard's files", "tensorboard", "tensorboard")


class TensorBoard(keras.callbacks.TensorBoard):
    """Writes `keras.callbacks.TensorBoard`'s curves, and pictures.

    - IoU and predicted share of the classes are two groups of charts, such as `epoch_iou/sky`. A
      class without an IoU has no point.
    - `confusion_matrix` is a picture of the validation images' confusion matrix, each row divided
      by its sum, at the end of each epoch.
    - `predictions` shows the same few images in every epoch beside truth and prediction.

    Curves of classes and the confusion matrix are those of a `SegmentationMetrics` in `compile`,
    which also names the classes; without it, the pictures of predictions number them.

    Args:
        log_dir: Folder of the event files.
        dataset: Labelled images, of which the first are shown: a finite `tf.data.Dataset` of
            `(images, labels)`, or of single images and label maps. None for no pictures of
            predictions.
        colors: One `(red, green, blue)` in 0..255 per class; PASCAL VOC's by default.
        num_pictures: Number of images to show.
        picture_freq: Epochs from one picture to the next, or a list of epochs from 1 on, as
            `validation_freq` of `fit`.
        **options: Arguments of `keras.callbacks.TensorBoard`; `write_graph` is False by default.

    Raises:
        ImportError: If the package tensorboard is not installed.
        ValueError: If an argument is out of its range, or the data set is infinite or has other
            elements.

    Example:

    >>> report = keras_deeplab.TensorBoard("logs", dataset, num_pictures=2)
    >>> model.fit(dataset, validation_data=dataset, callbacks=[report])
    """

    def __init__(
        self,
        log_dir: str | os.PathLike = "logs",
        dataset: tf.data.Dataset | None = None,
        colors: Colors | None = None,
        num_pictures: int = 4,
        picture_freq: int | Sequence[int] = 1,
        **options: Any,
    ) -> None:
        check_installed()
        super().__init__(log_dir, **{"write_graph": False, **options})
        self.colors = colors
        check = integers if isinstance(picture_freq, list | tuple) else integer
        self.picture_freq = check("picture_freq", picture_freq)
        self._examples = _first(dataset, integer("num_pictures", num_pictures))
        self._confusion: np.ndarray | None = None

    def on_train_begin(self, logs: Logs = None) -> None:
        """Discards the confusion matrix of an earlier call of `evaluate`."""
        self._confusion = None
        super().on_train_begin(logs)

    def on_test_end(self, logs: Logs = None) -> None:
        """Keeps the confusion matrix of the validation."""
        if metrics := self._metrics():
            self._confusion = tf.convert_to_tensor(metrics[0].confusion).numpy()
        grouped = self._grouped(logs)
        if isinstance(logs, dict):  # Keras writes them as charts of their own, without the classes
            grouped = {name: value for name, value in grouped.items() if name in logs}
        super().on_test_end(grouped)

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Writes Keras' curves."""
        super().on_train_batch_end(batch, self._grouped(logs))

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Writes curves and pictures."""
        super().on_epoch_end(epoch, self._grouped(logs))
        freq, number = self.picture_freq, epoch + 1
        is_due = number % freq == 0 if isinstance(freq, int) else number in freq
        pictures = self._pictures() if is_due else {}
        self._confusion = None  # an epoch without validation has none
        # Keras' own writer: TensorBoard follows one file in a folder, the newest.
        for name, picture in pictures.items():
            with self._val_writer.as_default(epoch):
                tf.summary.image(name, picture[None])

    def _metrics(self) -> list[SegmentationMetrics]:
        every = [inner for m in self.model.metrics for inner in (m, *getattr(m, "metrics", ()))]
        return [metric for metric in every if isinstance(metric, SegmentationMetrics)]

    def _grouped(self, logs: Logs) -> Logs:
        """Logs in which the names of a class's values have the slash that makes groups."""
        if not isinstance(logs, dict):
            return logs
        grouped = {
            f"{part}{metric.prefix}{name}_{key}": f"{part}{metric.prefix}{name}/{key}"
            for metric in self._metrics()
            for name in _CLASS_METRICS
            for key in metric.class_keys
            for part in ("", "val_")
        }
        return {
            grouped.get(k, k): v for k, v in logs.items() if k not in grouped or not np.isnan(v)
        }

    def _pictures(self) -> dict[str, np.ndarray]:
        names = list(map(str, range(logits_spec(self.model)[1])))
        ignored, pictures = 255, {}
        if metrics := self._metrics():
            names, ignored = metrics[0].class_names or names, metrics[0].ignore_label
        if self._confusion is not None and self._confusion.sum() > 0:
            pictures["confusion_matrix"] = confusion_picture(self._confusion, names)
        if self._examples:
            images, truths = zip(*self._examples, strict=True)
            predictions = [predict(self.model, image) for image in images]
            pictures["predictions"] = comparison_picture(
                images, truths, predictions, names, self.colors, ignored
            )
        return pictures


def _first(dataset: tf.data.Dataset | None, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The first images and label maps `(height, width)` of a data set."""
    if dataset is None:
        return []
    pairs = pair_batches(dataset).unbatch().take(count).as_numpy_iterator()
    return [(image, label[..., 0] if label.ndim == 3 else label) for image, label in pairs]
