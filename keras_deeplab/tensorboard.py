"""TensorBoard curves and pictures of a segmentation model in training."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_deeplab.evaluation import pair_batches
from keras_deeplab.inference import logits_spec, predict
from keras_deeplab.labels import checked_ignore_label
from keras_deeplab.metrics import SegmentationMetrics, checked_names
from keras_deeplab.pictures import Colors, comparison_picture, confusion_picture
from keras_deeplab.validation import integer

_CLASS_METRICS = ("iou", "predicted_share")


def check_installed() -> None:
    """Raises an ImportError with the command to install tensorboard if it is missing."""
    if importlib.util.find_spec("tensorboard") is None:
        raise ImportError(
            "TensorFlow writes TensorBoard's files only with the package tensorboard: "
            "pip install keras_deeplab[tensorboard]"
        )


class TensorBoard(keras.callbacks.TensorBoard):
    """Writes `keras.callbacks.TensorBoard`'s curves, class curves and pictures.

    At the end of each epoch it writes, for training under `train` and for validation under
    `validation`:

    - `iou/NAME` and `predicted_share/NAME` of each class, named as in the logs and grouped, where
      Keras would write a chart for each of them; a class without an IoU has no point.
    - `confusion_matrix`, a picture of the validation images' confusion matrix, each row divided by
      its sum.
    - `predictions`, a picture of the same few images in every epoch beside truth and prediction.

    Validation curves and the confusion matrix need `validation_data` in `fit` and a
    `SegmentationMetrics` in `compile`; the pictures of predictions need neither.

    Args:
        log_dir: Folder of the event files.
        dataset: Labelled images for the pictures, such as the validation data: a finite
            `tf.data.Dataset` of `(images, labels)`, or of single images and label maps. None for no
            pictures of predictions.
        class_names: One name per class, for the pictures; by default those of the
            `SegmentationMetrics`, or numbers.
        colors: One `(red, green, blue)` in 0..255 per class; PASCAL VOC's by default.
        num_pictures: Number of images to show, taken from the whole data set at equal distances
            (the first ones, where its length is not known).
        picture_freq: Epochs from one picture to the next.
        ignore_label: Label of ignored pixels, or None.
        **options: Arguments of `keras.callbacks.TensorBoard`; `write_graph` is False by default.

    Raises:
        ImportError: If the package tensorboard is not installed.
        ValueError: If an argument is out of its range, or the data set is infinite or has other
            elements.

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
        super().__init__(log_dir, **{"write_graph": False, **options})
        num_pictures = integer("num_pictures", num_pictures)
        self.class_names = None if class_names is None else [str(name) for name in class_names]
        self.colors = colors
        self.picture_freq = integer("picture_freq", picture_freq)
        self.ignore_label = checked_ignore_label(ignore_label)
        self._examples = [] if dataset is None else _examples(dataset, num_pictures)
        self._confusion: np.ndarray | None = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Discards the confusion matrix of an earlier call of `evaluate`."""
        self._confusion = None
        super().on_train_begin(logs)

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """Keeps the confusion matrix of the validation."""
        if metrics := self._metrics():
            self._confusion = tf.convert_to_tensor(metrics[0].confusion).numpy()
        super().on_test_end(self._without_classes(logs))

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes Keras' curves."""
        super().on_train_batch_end(batch, self._without_classes(logs))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes curves and pictures."""
        super().on_epoch_end(epoch, self._without_classes(logs))
        logs, charts, names, pictures = logs or {}, self._charts(), self._names(), {}
        if epoch % self.picture_freq == 0:
            if self._confusion is not None and self._confusion.sum() > 0:
                pictures["confusion_matrix"] = confusion_picture(self._confusion, names)
            if self._examples:
                pictures["predictions"] = self._comparison(names)
        self._confusion = None  # an epoch without validation has none
        # Keras' own writers: TensorBoard follows one file in a folder, the newest.
        if charts:
            with self._train_writer.as_default(epoch):
                _write_curves({chart: logs.get(key) for key, chart in charts.items()})
        if pictures or any(f"val_{key}" in logs for key in charts):
            with self._val_writer.as_default(epoch):
                _write_curves({chart: logs.get(f"val_{key}") for key, chart in charts.items()})
                for name, picture in pictures.items():
                    tf.summary.image(name, picture[None])

    def _metrics(self) -> list[SegmentationMetrics]:
        """Returns the model's metrics that count a confusion matrix."""
        every = [inner for m in self.model.metrics for inner in (m, *getattr(m, "metrics", ()))]
        return [metric for metric in every if isinstance(metric, SegmentationMetrics)]

    def _charts(self) -> dict[str, str]:
        """Returns the chart of each entry of a single class in the logs."""
        return {
            f"{metric.prefix}{name}_{key}": f"{metric.prefix}{name}/{key}"
            for metric in self._metrics()
            for name in _CLASS_METRICS
            for key in metric.class_keys
        }

    def _without_classes(self, logs: Any) -> Any:
        """Returns logs without the entries of single classes."""
        if not isinstance(logs, dict):
            return logs
        charts = self._charts()
        return {key: value for key, value in logs.items() if key.removeprefix("val_") not in charts}

    def _names(self) -> list[str]:
        names, metrics = self.class_names, self._metrics()
        if names is None and metrics:
            names = metrics[0].class_names
        return checked_names(logits_spec(self.model)[1], names)

    def _comparison(self, names: Sequence[str]) -> np.ndarray:
        """Returns the picture of the example images with the model's current predictions."""
        images, truths = zip(*self._examples, strict=True)
        predictions = [predict(self.model, image) for image in images]
        return comparison_picture(
            images, truths, predictions, names, self.colors, self.ignore_label
        )


def _write_curves(curves: dict[str, float | None]) -> None:
    for name, value in curves.items():
        if value is not None and not np.isnan(value):
            tf.summary.scalar(name, value)


def _examples(dataset: tf.data.Dataset, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Reads a few images and label maps `(height, width)` from the whole data set."""
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
