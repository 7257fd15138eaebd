"""What a run shows of its classes, and what it says and keeps when it is lost."""

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

from keras_deeplab import data, metrics, schedules
from training import building, callbacks, distribution, fitting, run_folder, train

pytestmark = pytest.mark.usefixtures("small")

SHORT = ["--batch-size", "5", "--crop-size", "48", "64"]  # two steps an epoch


@pytest.fixture
def broken_update(monkeypatch):
    """Makes the learning rate of the run's fourth step, the last of epoch 2, no number."""
    original = schedules.PolynomialDecay.__call__

    def rate(self, step):
        return tf.where(tf.equal(tf.cast(step, tf.int32), 3), math.nan, original(self, step))

    monkeypatch.setattr(schedules.PolynomialDecay, "__call__", rate)


def test_an_update_that_breaks_the_weights_is_not_kept(tmp_path, capsys, broken_update):
    folder = run_folder.RunFolder(tmp_path / "run")
    assert train.main([*SHORT, "--epochs", "3", "--output", str(folder.path)]) == 2
    said = capsys.readouterr().err
    names = data.batch_names(data.open_source("shapes"), batch_size=5, step=3)
    assert re.search(
        r"error: \S+ and \d\d more weights became infinite or nan in epoch 2, step 4 ", said
    )
    assert f"on the images {', '.join(names)}; the last good model is {folder.last_model}." in said
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


def test_the_images_of_a_step_are_those_that_were_trained_on_in_both_stages(tmp_path):
    source = Grey(train=7, val=0)
    options = train.parser().parse_args([*SHORT, "--epochs", "2", "--fine-epochs", "2"])
    building.start(options)
    report = data.audit(source)
    recipe = train.chosen_recipe(options, report)
    folder = run_folder.RunFolder(tmp_path)
    strategy = distribution.open_strategy("none")
    run = fitting.Run(options, recipe, source, report, folder, 0, strategy)
    assert (run.epochs, run.steps_per_epoch) == ([2, 2], 2)
    seen = []
    for number, stage in enumerate(run.stages):
        made = run._callbacks(stage, number, 2 * number)
        lost = next(c for c in made if hasattr(c, "batch_names"))
        for step, (images, _) in enumerate(run._images(stage, number, 0).take(4)):
            lost.on_epoch_begin(2 * number + step // 2)
            with pytest.raises(ValueError, match="the loss became nan in epoch") as raised:
                lost.on_train_batch_end(step % 2, {"loss": math.nan})
            said = re.search(r"step (\d+) of the run, on the images (.+); none", str(raised.value))
            greys = np.median(images.numpy(), axis=(1, 2, 3)) / 20
            assert said[1] == str(4 * number + step + 1)
            assert said[2].split(", ") == [source.names("train")[round(grey)] for grey in greys]
            seen.append(said[2])
    assert seen[:4] != seen[4:]


def test_classes_are_shown_whatever_the_white_space_in_their_names(capsys):
    names = ["road", " car ", "traffic  light"]
    metric = metrics.SegmentationMetrics(3, names)
    metric.update_state(np.array([[[0, 1, 1, 2]]]), np.array([[[0, 1, 0, 0]]]))
    progress = callbacks.Progress(names, steps_per_epoch=1, epochs=1)
    progress.on_epoch_end(0, {f"val_{key}": float(x) for key, x in metric.result().items()})
    said = capsys.readouterr().out
    assert "val IoU: road 33.3,  car  50.0, traffic  light 0.0" in said
    assert "never predicted: traffic  light" in said
