"""`fit` with a model of the user's: files, resuming, refusals, and runs without a folder."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from event_files import events
from models.networks import tiny
from PIL import Image
from trainer.stored_arrays import arrays, assert_same_arrays

import keras_deeplab
from keras_deeplab import DeepLabV3, MultiScale, data, export, losses, recipes, schedules
from keras_deeplab.data.augmentation.augmenting import CHECKS
from keras_deeplab.data.diagnostics import Finding
from keras_deeplab.models.multi_scale import with_test_time_augmentation
from keras_deeplab.trainer import RunFolder, stages
from keras_deeplab.trainer.run_folder import Record

SOURCE = data.Shapes(train=4, val=2)
RECIPE = recipes.get("shapes").replace(
    epochs=2, stage2_share=0.5, batch_size=2, crop_size=(48, 64), loss="cross_entropy"
)
FAST = RECIPE.replace(epochs=1, stage2_share=0)
SINGLE = FAST.replace(epochs=3)


def small(**more):
    keras.utils.set_random_seed(7)
    return DeepLabV3(6, tiny(), aspp_rates=(), aspp_filters=8, head_filters=None, **more)


def fit(folder, model=None, recipe=RECIPE, **more):
    return keras_deeplab.fit(model or small(), SOURCE, recipe, run_dir=folder, verbose=0, **more)


def plain(dropout=0.3):
    """What trains in seconds, with all that a run has to resume."""
    keras.utils.set_random_seed(7)
    layers = keras.layers
    parts = [layers.Conv2D(8, 3, 4), layers.BatchNormalization(), layers.Dropout(dropout)]
    parts += [layers.Conv2D(6, 1)]
    inputs = x = keras.Input((None, None, 3))
    for layer in parts:
        x = layer(x)
    return keras.Model(inputs, keras_deeplab.layers.ResizeLike()(x, inputs))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two stages that nothing disturbed."""
    return fit(tmp_path_factory.mktemp("run") / "first")


def test_a_run_leaves_its_files_and_returns_its_result(run, monkeypatch):
    folder = run.folder
    assert type(run.model) is DeepLabV3
    assert run.history["epoch"] == [0, 1, 2]
    assert len(run.history["loss"]) == len(run.history["val_mean_iou"]) == 3
    assert run.best_score == pytest.approx(max(run.history["val_mean_iou"]))
    scores = json.loads(folder.metrics.read_text())
    assert scores == run.scores
    assert (scores["split"], scores["images"]) == ("val", 2)
    assert set(scores) >= {"mean_iou", "per_class", "pixel_accuracy"}
    model = keras.models.load_model(folder.best_model)
    for one, other in zip(model.get_weights(), run.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert keras.models.load_model(folder.last_model).output_stride == 8
    with folder.history.open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1", "2"]
    assert np.asarray(Image.open(folder.picture)).std() > 10
    served = tf.saved_model.load(str(folder.saved_model))
    x = np.random.default_rng(0).integers(0, 255, (2, 33, 47, 3), "uint8")
    labels = served.signatures["serving_default"](images=tf.constant(x))["labels"]
    np.testing.assert_array_equal(labels, np.argmax(model(x), -1))
    assert not list(folder.path.glob(".*"))
    before = folder.best_model.read_bytes()
    monkeypatch.setattr(data, "audit", pytest.fail)  # which may take minutes
    with pytest.raises(ValueError, match=f"^{folder.path} holds a finished run"):
        fit(folder.path)
    assert folder.best_model.read_bytes() == before


@pytest.mark.parametrize("place, first", [("run", "run"), ("runs/run", "runs")])
def test_a_folder_that_cannot_be_written_is_an_error_before_the_audit(
    tmp_path, monkeypatch, place, first
):
    """As on a read-only file system; nothing is made before the audit."""
    monkeypatch.setattr(data, "audit", fail)
    with pytest.raises(OSError, match="the disk is full"):
        fit(tmp_path / place, plain(), FAST)
    assert list(tmp_path.iterdir()) == []
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path and access(path, mode))
    with pytest.raises(PermissionError, match=f"Permission denied: '{tmp_path / first}'"):
        fit(tmp_path / place, plain(), FAST)


def test_a_run_whose_export_deviates_has_its_scores(tmp_path, monkeypatch, eager, caplog):
    def deviate(*args, **options):
        raise export.ExportError("it deviates by 0.5")

    monkeypatch.setattr(export, "saved_model", deviate)
    result = fit(tmp_path / "run", plain(), FAST)
    assert "saved_model is not written: it deviates by 0.5" in caplog.text
    assert json.loads(result.folder.metrics.read_text()) == result.scores
    assert result.folder.report.exists()
    with pytest.raises(ValueError, match="holds a finished run"):
        fit(tmp_path / "run", plain(), FAST)


class Stop(keras.callbacks.Callback):
    """Interrupts a run in its second epoch."""

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations) == 3:
            raise KeyboardInterrupt


@pytest.fixture
def no_export(monkeypatch):
    monkeypatch.setattr(export, "saved_model", lambda *args, **options: None)


def fail(*args, **options):
    raise OSError("the disk is full")


def test_a_resumed_run_ends_bit_for_bit_where_an_undisturbed_one_ends(
    tmp_path, monkeypatch, no_export, eager, logs
):
    """Interrupted in the second epoch, and by a failing export; its recipe was in a file."""
    undisturbed = fit(tmp_path / "whole", plain(), SINGLE).folder
    stopped, file = RunFolder(tmp_path / "run"), tmp_path / "mine.json"
    file.write_text(json.dumps(SINGLE.to_dict()))
    with pytest.raises(KeyboardInterrupt):
        fit(stopped.path, plain(), file, callbacks=[Stop()])
    file.write_text(json.dumps(SINGLE.replace(power=0.5).to_dict()))
    for changes, message in (
        ({"seed": 1}, "seed was 0, is 1"),
        ({"recipe": SINGLE.replace(power=0.5)}, r"recipe\.power was 0\.9, is 0\.5\)"),
        ({"recipe": file}, r"recipe\.power was 0\.9, is 0\.5\)"),
        ({"model": small()}, "model was 'Functional .*', is 'DeepLabV3"),
        ({"test_flip": True}, "test_flip was False, is True"),
    ):
        with pytest.raises(ValueError, match=f"unfinished run with other arguments.*{message}"):
            fit(stopped.path, **{"model": plain(), "recipe": SINGLE, **changes})

    (stopped.path / ".123-last.keras").write_bytes(b"half a model")
    (stopped.path / ".saved_model.0a1b").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(export, "saved_model", fail)
        with pytest.raises(OSError, match="the disk is full"):
            fit(stopped.path, plain(), stopped.arguments)
    assert f"Resuming from epoch 1 of 3 in {stopped.path}" in logs.messages
    assert fit(stopped.path, plain(), SINGLE).history.get("epoch", []) == []
    assert stopped.history.read_text() == undisturbed.history.read_text()
    assert len(stopped.history.read_text().splitlines()) == 1 + 3
    for path in ("last_model", "best_model"):
        assert_same_arrays(getattr(stopped, path), getattr(undisturbed, path))
    assert stopped.metrics.read_bytes() == undisturbed.metrics.read_bytes()
    assert not list(stopped.path.glob(".*"))


@pytest.mark.slow
def test_a_training_that_a_callback_ended_is_not_continued(tmp_path, monkeypatch, no_export, eager):
    """Where its end failed, it is scored and exported, and not trained to the last epoch."""

    class End(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    with monkeypatch.context() as patch:
        patch.setattr(export, "saved_model", fail)
        with pytest.raises(OSError, match="the disk is full"):
            fit(tmp_path, plain(), SINGLE, callbacks=[End()])
    result = fit(tmp_path, plain(), SINGLE)
    assert result.history.get("epoch", []) == []
    assert len(result.folder.history.read_text().splitlines()) == 1 + 1
    assert Record.read(result.folder.best_model).epochs == 1
    assert not list(tmp_path.glob(".*"))


class Unregistered(keras.layers.Layer):
    def __init__(self, factor, **options):
        super().__init__(**options)
        self.factor = factor

    def call(self, inputs):
        return inputs * self.factor


@pytest.mark.parametrize(
    "layer",
    [keras.layers.Lambda(lambda x: x), Unregistered(2), type("Local", (Unregistered,), {})(2)],
)
def test_a_model_that_cannot_be_loaded_is_refused_before_the_training(tmp_path, layer, eager, logs):
    inputs = keras.Input((None, None, 3))
    outputs = layer(keras.layers.Conv2D(6, 1)(inputs))
    with pytest.raises(ValueError, match="`model` must be a model that can be loaded from a file"):
        fit(tmp_path / "run", keras.Model(inputs, outputs), FAST)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_is_trained_where_nothing_is_stored(eager):
    inputs = keras.Input((None, None, 3))
    outputs = keras.layers.Lambda(lambda x: x)(keras.layers.Conv2D(6, 1)(inputs))
    assert np.isfinite(fit(None, keras.Model(inputs, outputs), FAST).scores["mean_iou"])


@pytest.fixture
def broken_update(monkeypatch):
    """Makes the learning rate of the run's fourth step, the last of epoch 2, NaN."""
    original = schedules.PolynomialDecay.__call__

    def rate(self, step):
        return tf.where(tf.equal(tf.cast(step, tf.int32), 3), math.nan, original(self, step))

    monkeypatch.setattr(schedules.PolynomialDecay, "__call__", rate)


@pytest.mark.slow
def test_an_update_that_breaks_the_weights_is_not_saved(tmp_path, broken_update, eager):
    folder = RunFolder(tmp_path / "run")
    names = data.batch_names(SOURCE, batch_size=2, step=3)
    message = (
        r"^\S+ became infinite or nan in epoch 2, step 4 of the run, on the "
        f"images {', '.join(names)}; the last good model is {folder.last_model}\\."
    )
    with pytest.raises(ValueError, match=message):
        fit(folder.path, plain(), SINGLE)
    for path in (folder.best_model, folder.last_model):
        assert all(np.isfinite(array).all() for array in arrays(path).values())
    assert Record.read(folder.last_model).epochs == 1
    assert len(folder.history.read_text().splitlines()) == 1 + 1


@pytest.mark.slow
def test_several_scales_class_weights_and_tensorboard(tmp_path, no_export, eager):
    recipe = SINGLE.replace(
        epochs=1, multi_scale=(0.5, 1.0), class_weights="median", loss="cross_entropy(stride=8)"
    ).replace(mosaic=0.5, copy_paste=0.5)
    result = fit(tmp_path / "run", plain(), recipe, tensorboard=True)
    stored = json.loads(result.folder.arguments.read_text())
    assert len(stored["recipe"]["copy_paste_classes"]) == 3
    assert "background" not in stored["recipe"]["copy_paste_classes"]
    model = keras.models.load_model(result.folder.last_model)
    assert isinstance(model, MultiScale)
    assert (model.get_config()["scales"], model.fusion) == ((0.5, 1.0), "max")
    labels = SOURCE.dataset("train").map(lambda _, label: label)
    expected = losses.class_weights(labels, 6, "median", power=recipe.class_weights_power)
    assert max(expected) > 2 * min(expected)
    np.testing.assert_allclose(model.loss.class_weights, expected, rtol=1e-6)
    assert model.loss.stride == 8
    for split in ("train", "validation"):
        assert list((result.folder.curves / split).glob("events*"))


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [4, 5])
def test_pictures_of_a_long_run_are_those_of_its_validations(
    tmp_path, no_export, eager, monkeypatch, epochs
):
    monkeypatch.setattr(stages, "VALIDATIONS", 2)
    recipe = FAST.replace(epochs=epochs)
    result = fit(tmp_path / "run", plain(), recipe, tensorboard=True, steps_per_epoch=1)
    found = events(result.folder.curves / "validation")
    validated = {4: {1, 3}, 5: {1, 4}}[epochs]
    assert set(found["confusion_matrix"]) == set(found["predictions"]) == validated
    assert set(found["epoch_mean_iou"]) == validated


@pytest.mark.slow
def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch, eager, caplog):
    monkeypatch.chdir(tmp_path)
    findings = [Finding("labels shifted", "by much", "Look", sure) for sure in (0.9, 0.5)]
    warnings = ("val: no pixel of car",)
    report = dataclasses.replace(data.audit(SOURCE), findings=findings, warnings=warnings)
    monkeypatch.setattr(data, "audit", lambda _: report)
    model, seen, traced = small(dtype="mixed_bfloat16"), [], []

    def transform(image, label, seed):
        traced.append(image.shape)
        return image, label

    start = model.get_weights()
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(epoch))
    augmentation = {"test_scales": (0.5,), "test_flip": True, "transform": transform}
    result = fit(None, model, FAST, callbacks=[note], **augmentation)
    warned = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert warned.count("labels shifted: by much. Look") == 1  # the certain one alone
    assert warned.count("val: no pixel of car") == 1
    assert set(traced) == {(48, 64, 3)}
    assert list(tmp_path.iterdir()) == []
    assert (result.folder, seen) == (None, [0])
    assert isinstance(result.model, MultiScale)
    config = result.model.get_config()
    assert (config["scales"], config["flip"], config["fusion"]) == ((0.5,), True, "mean")
    assert result.model.model.compute_dtype == "float32"
    differ = [np.any(a != b) for a, b in zip(start, model.get_weights(), strict=True)]
    assert np.mean(differ) > 0.9  # trained in place
    for one, other in zip(result.model.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    found = keras_deeplab.evaluate(result.model, data.evaluation_dataset(SOURCE), verbose=0)
    assert found["mean_iou"] == pytest.approx(result.scores["mean_iou"], abs=1e-6)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("side", [None, 64])
def test_large_images_are_validated_in_parts(monkeypatch, eager, side):

    class Square(data.Shapes):
        def dataset(self, *arguments):
            pairs = super().dataset(*arguments)
            return pairs.map(lambda image, label: (image[:64, :64], label[:64, :64]))

    source = Square(train=2, val=3)
    monkeypatch.setattr(stages, "PART_SIZE", 48)
    inputs = keras.Input((side, side, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(6, 1)(inputs / 255))
    sizes, step = [], keras.Model.test_step

    def recorded(self, batch):
        sizes.append(tuple(batch[0].shape[:3]))
        return step(self, batch)

    monkeypatch.setattr(keras.Model, "test_step", recorded)
    recipe = FAST.replace(epochs=2, crop_size=(64, 64))
    result = keras_deeplab.fit(model, source, recipe, verbose=0)
    assert set(sizes) == {(3, 64, 64) if side else (3, 32, 32)}
    # A network of one pixel has the scores of whole images.
    whole = keras_deeplab.evaluate(model, data.evaluation_dataset(source), verbose=0)
    assert result.history["val_mean_iou"][-1] == pytest.approx(whole["mean_iou"], abs=1e-6)


@pytest.mark.slow
def test_images_are_reduced_for_the_training_and_the_model_takes_them_as_they_are(tmp_path, eager):
    """The network is that of a training on images reduced before, inside a `MultiScale`."""
    recipe = FAST.replace(image_scale=0.5, crop_size=(32, 32))
    reduced = keras_deeplab.fit(
        plain(0), data.Resized(SOURCE, 0.5), recipe.replace(image_scale=1.0), verbose=0
    )
    result = fit(tmp_path / "run", plain(0), recipe)
    assert (type(result.model), result.model.scales) == (MultiScale, (0.5,))
    network = result.model.model
    for one, other in zip(network.get_weights(), reduced.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert result.history["val_mean_iou"] == reduced.history["val_mean_iou"]
    whole = data.evaluation_dataset(SOURCE)
    expected = keras_deeplab.evaluate(result.model, whole, verbose=0)["mean_iou"]
    assert result.scores["mean_iou"] == pytest.approx(expected)
    assert (result.scores["image_scale"], result.scores["test_time_augmentation"]) == (0.5, [])
    stored = keras_deeplab.load_model(result.folder.best_model)
    assert "the image at 0.5 of its size" in keras_deeplab.card(
        stored, result.folder.path, license="mit"
    )
    # All files are for images of the original size.
    image = next(iter(whole))[0].numpy()
    labels = keras_deeplab.predict(stored, image)
    assert labels.shape == image.shape[:3]
    small_image = next(iter(data.evaluation_dataset(data.Resized(SOURCE, 0.5))))[0]
    logits = keras_deeplab.layers.ResizeLike()(network(small_image), image)
    spread = np.std(logits, (0, 1, 2)).max()
    assert spread > 0.01
    np.testing.assert_allclose(stored(image), logits, atol=0.1 * spread)
    served = tf.saved_model.load(str(result.folder.saved_model))
    found = served.signatures["serving_default"](images=tf.constant(image, tf.uint8))["labels"]
    np.testing.assert_array_equal(found, labels)
    # Scales of test-time augmentation are relative to the reduced images.
    more = with_test_time_augmentation(stored, (1.0, 1.5))
    assert (more.scales, more.model.scales) == ((1.0, 1.5), (0.5,))
    assert with_test_time_augmentation(more, (1.0,)).scales == (0.5,)
    with pytest.raises(ValueError, match="`model` must be the network inside"):
        fit(None, stored, recipe)


@pytest.mark.parametrize("divisor", [1, 255])
def test_an_augmentation_that_divides_by_255_is_a_warning(divisor, eager, logs):
    def transform(image, label, seed):
        del seed
        return image / divisor, label

    keras_deeplab.fit(plain(), SOURCE, FAST, steps_per_epoch=1, transform=transform, verbose=0)
    assert ("almost black. Do not divide by 255" in logs.text) == (divisor == 255)


def test_a_callback_need_not_be_in_a_list(eager):
    del eager
    epochs = []
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: epochs.append(epoch))
    keras_deeplab.fit(plain(), SOURCE, FAST, steps_per_epoch=1, verbose=0, callbacks=note)
    assert epochs


@pytest.fixture
def streets(tmp_path, write_pair):
    """A folder of photographs and label maps of two classes."""
    random, root = np.random.default_rng(0), tmp_path / "streets"
    for split, count in (("train", 4), ("val", 2)):
        for number in range(count):
            image = random.integers(0, 256, (48, 64, 3), np.uint8)
            write_pair(root, split, f"{number}", random.integers(0, 2, (48, 64)), image)
    return root


def two_classes():
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(2, 3, 4, padding="same")(keras.layers.Rescaling(1 / 255)(inputs))
    return keras.Model(inputs, keras_deeplab.layers.ResizeLike()(x, inputs))


def test_a_file_damaged_during_the_training_is_one_line(streets, tmp_path, eager):
    path, whole = streets / "val" / "labels" / "1.png", None

    def damage(epoch, logs):
        nonlocal whole
        whole = whole or path.read_bytes()
        path.write_bytes(b"xx")

    damaging = keras.callbacks.LambdaCallback(on_epoch_begin=damage)
    recipe, where = FAST.replace(epochs=2), {"run_dir": tmp_path / "run", "verbose": 0}
    message = r"labels/1\.png: unreadable file.*which resumes"
    with pytest.raises(ValueError, match=message) as caught:
        keras_deeplab.fit(two_classes(), streets, recipe, callbacks=[damaging], **where)
    assert "\n" not in str(caught.value)
    assert "node" not in str(caught.value)
    Image.fromarray(np.ones((48, 64), np.uint8)).save(path)  # drawn again
    assert keras_deeplab.fit(two_classes(), streets, recipe, **where).scores is not None


def test_a_run_that_goes_on_with_other_label_maps_warns(streets, tmp_path, eager, no_export, logs):
    recipe, where = FAST.replace(epochs=2), {"run_dir": tmp_path / "run", "verbose": 0}
    with pytest.raises(KeyboardInterrupt):
        keras_deeplab.fit(two_classes(), streets, recipe, callbacks=[Stop()], **where)
    assert "label maps are not those" not in logs.text
    path = streets / "val" / "labels" / "1.png"
    Image.fromarray(np.asarray(Image.open(path)) * 0).save(path)
    assert len(keras_deeplab.fit(two_classes(), streets, recipe, **where).history["loss"]) == 1
    assert f"label maps are not those with which the run {tmp_path / 'run'} began" in logs.text


def test_a_run_goes_on_when_its_data_was_moved(streets, tmp_path, eager, no_export, logs):
    def stop(epoch, logs):
        if epoch:
            raise KeyboardInterrupt

    recipe, where = FAST.replace(epochs=2), {"run_dir": tmp_path / "run", "verbose": 0}
    stopping = keras.callbacks.LambdaCallback(on_epoch_begin=stop)
    with pytest.raises(KeyboardInterrupt):
        keras_deeplab.fit(two_classes(), streets, recipe, callbacks=[stopping], **where)
    other = shutil.copytree(streets, tmp_path / "other")
    Image.new("L", (64, 48)).save(other / "val" / "labels" / "1.png")
    with pytest.raises(ValueError, match=r"other arguments \(data was '.*', is '.*other'\)"):
        keras_deeplab.fit(two_classes(), other, recipe, **where)
    moved = streets.rename(tmp_path / "moved")
    assert len(keras_deeplab.fit(two_classes(), moved, recipe, **where).history["loss"]) == 1
    assert f"began with the data {streets} and resumes with {moved}" in logs.text
    assert "label maps are not those" not in logs.text


def test_the_augmentation_of_a_recipe_reaches_the_data():
    assert {*CHECKS, "crop_size", "batch_size", "class_focus"} <= stages.DATASET_FIELDS
