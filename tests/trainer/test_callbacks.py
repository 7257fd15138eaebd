"""Progress, and the error of a loss that is not finite."""

from __future__ import annotations

import math
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_deeplab import data, metrics, recipes
from keras_deeplab.trainer import RunFolder, callbacks, stages

SHORT = recipes.get("shapes").replace(batch_size=5, crop_size=(48, 64))  # two steps an epoch


class Grey(data.Shapes):
    """Images whose grey value is their place among the names."""

    def dataset(self, split, numbers=None):
        order = tf.data.Dataset.range(len(self.names(split))) if numbers is None else numbers

        def pair(number):
            grey = tf.fill((64, 80, 3), tf.cast(20 * number, tf.uint8))
            return grey, tf.zeros((64, 80), tf.uint8)

        return order.map(pair)


@pytest.mark.slow
def test_the_images_of_a_step_are_those_that_were_trained_on_in_both_stages(tmp_path):
    source = Grey(train=7, val=0)
    recipe = SHORT.replace(epochs=2, stage2_share=1.0)
    strategy = tf.distribute.get_strategy()
    folder = RunFolder(tmp_path)
    run = stages.Training("", recipe, source, data.audit(source), strategy, 2, 0, folder)
    assert run.epochs == [2, 2]
    seen = []
    for number in range(2):
        made = run._callbacks(number, 2 * number, ())
        stop = next(c for c in made if isinstance(c, callbacks.StopOnNonFinite))
        for step, (images, _) in enumerate(run._images(number, 0).take(4)):
            stop.on_epoch_begin(2 * number + step // 2)
            with pytest.raises(ValueError, match="the loss became nan in epoch") as raised:
                stop.on_train_batch_end(step % 2, {"loss": math.nan})
            pattern = r"step (\d+) of the run, on the images (.+); no model was saved\. Look"
            found = re.search(pattern, str(raised.value))
            greys = np.median(images.numpy(), axis=(1, 2, 3)) / 20
            assert found[1] == str(4 * number + step + 1)
            assert found[2].split(", ") == [source.names("train")[round(grey)] for grey in greys]
            seen.append(found[2])
    assert seen[:4] != seen[4:]


def test_classes_are_shown_whatever_the_white_space_in_their_names(logs):
    names = ["road", " car ", "traffic  light\n"]
    metric = metrics.SegmentationMetrics(3, names)
    metric.update_state(np.array([[[0, 1, 1, 2]]]), np.array([[[0, 1, 0, 0]]]))
    progress = callbacks.Progress(names, steps_per_epoch=1, epochs=1)
    progress.on_epoch_begin(0)
    progress.on_epoch_end(0, {f"val_{key}": float(x) for key, x in metric.result().items()})
    assert logs.messages == [
        "Epoch 1/1",
        "  val IoU: road 33.3,  car  50.0, traffic  light\\n 0.0",
        "  never predicted: traffic  light\\n",
    ]


def test_verbose_2_is_one_line_an_epoch(capsys):
    progress = callbacks.Progress(["a"], steps_per_epoch=2, epochs=1, verbose=2)
    progress.on_epoch_begin(0)
    for batch in (0, 1):
        progress.on_train_batch_end(batch, {"loss": 0.75})
    assert capsys.readouterr().out == ""
    progress.on_epoch_end(0, {"loss": 0.75})
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("2/2 - ")
    assert "loss: 0.7500" in line


def test_any_letters_of_classes_are_written_in_utf8(tmp_path, monkeypatch):
    """Whatever the encoding of the locale, which Keras' own method takes."""
    monkeypatch.setattr(keras.callbacks.CSVLogger, "on_train_begin", None)
    path = tmp_path / "history.csv"
    for epoch in (0, 1):
        history = callbacks.History(path, append=True)
        history.on_train_begin()
        history.on_epoch_end(epoch, {"iou_дорога": 0.25 + epoch, "iou_Straße": 0.5})
        history.on_train_end()
    assert path.read_bytes().decode("utf-8").splitlines() == [
        "epoch,iou_Straße,iou_дорога,val_iou_Straße,val_iou_дорога",
        "0,0.5,0.25,NA,NA",
        "1,0.5,1.25,NA,NA",
    ]
