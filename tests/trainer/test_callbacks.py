"""Progress, and runs whose loss or weights become non-finite."""

from __future__ import annotations

import io
import math
import re
import zipfile

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_deeplab
from keras_deeplab import data, metrics, recipes, schedules
from keras_deeplab.trainer import callbacks, fitting, run_folder

pytestmark = pytest.mark.usefixtures("small")

SHORT = recipes.SHAPES.replace(batch_size=5, crop_size=(48, 64))  # two steps an epoch


@pytest.fixture
def broken_update(monkeypatch):
    """Makes the learning rate of the run's fourth step, the last of epoch 2, NaN."""
    original = schedules.PolynomialDecay.__call__

    def rate(self, step):
        return tf.where(tf.equal(tf.cast(step, tf.int32), 3), math.nan, original(self, step))

    monkeypatch.setattr(schedules.PolynomialDecay, "__call__", rate)


def test_an_update_that_breaks_the_weights_is_not_saved(tmp_path, broken_update):
    folder = run_folder.RunFolder(tmp_path / "run")
    names = data.batch_names(data.open_source("shapes"), batch_size=5, step=3)
    message = (
        r"^\S+ and \d\d more weights became infinite or nan in epoch 2, step 4 of the run, on the "
        f"images {', '.join(names)}; the last good model is {folder.last_model}\\."
    )
    with pytest.raises(ValueError, match=message):
        keras_deeplab.fit("deeplab_v3_plus", "shapes", SHORT.replace(epochs=3), run_dir=folder.path)
    for path in (folder.best_model, folder.last_model):
        model = keras.models.load_model(path, compile=False)
        assert all(np.isfinite(weight).all() for weight in model.get_weights())
    assert run_folder.Record.read(folder.last_model).epochs == 1
    with zipfile.ZipFile(folder.last_model) as archive:
        state = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(state) as file:
        arrays = []
        file.visititems(lambda _, x: arrays.append(x[()]) if isinstance(x, h5py.Dataset) else None)
    assert len(arrays) > 50
    assert all(np.isfinite(array).all() for array in arrays)
    assert len(folder.history.read_text().splitlines()) == 1 + 1


class Grey(data.Shapes):
    """Images whose grey value is their place among the names."""

    def dataset(self, split, numbers=None):
        order = tf.data.Dataset.range(len(self.names(split))) if numbers is None else numbers

        def pair(number):
            grey = tf.fill((64, 80, 3), tf.cast(20 * number, tf.uint8))
            return grey, tf.zeros((64, 80), tf.uint8)

        return order.map(pair)


def test_the_images_of_a_step_are_those_that_were_trained_on_in_both_stages():
    source = Grey(train=7, val=0)
    recipe = SHORT.replace(epochs=2, stage2_share=1.0)
    strategy = tf.distribute.get_strategy()
    run = fitting._Run("", recipe, source, data.audit(source), strategy, 2, 0, None)
    assert run.epochs == [2, 2]
    seen = []
    for number in range(2):
        made = run._callbacks(number, 2 * number)
        stop = next(c for c in made if isinstance(c, callbacks.StopOnNonFinite))
        for step, (images, _) in enumerate(run._images(number, 0).take(4)):
            stop.on_epoch_begin(2 * number + step // 2)
            with pytest.raises(ValueError, match="the loss became nan in epoch") as raised:
                stop.on_train_batch_end(step % 2, {"loss": math.nan})
            said = re.search(r"step (\d+) of the run, on the images (.+)\. Look", str(raised.value))
            greys = np.median(images.numpy(), axis=(1, 2, 3)) / 20
            assert said[1] == str(4 * number + step + 1)
            assert said[2].split(", ") == [source.names("train")[round(grey)] for grey in greys]
            seen.append(said[2])
    assert seen[:4] != seen[4:]


def test_classes_are_shown_whatever_the_white_space_in_their_names(logs):
    names = ["road", " car ", "traffic  light"]
    metric = metrics.SegmentationMetrics(3, names)
    metric.update_state(np.array([[[0, 1, 1, 2]]]), np.array([[[0, 1, 0, 0]]]))
    progress = callbacks.Progress(names, steps_per_epoch=1, epochs=1)
    progress.on_epoch_end(0, {f"val_{key}": float(x) for key, x in metric.result().items()})
    assert logs.messages == [
        "  val IoU: road 33.3,  car  50.0, traffic  light 0.0",
        "  never predicted: traffic  light",
    ]
