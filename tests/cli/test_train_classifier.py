from __future__ import annotations

import csv
import importlib
import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import keras_deeplab
from keras_deeplab import data
from keras_deeplab.backbones import registry
from keras_deeplab.cli import train_classifier

SHORT = ["--sizes", "24", "16", "--epochs", "3", "--batch-size", "4", "--dense", "8"]
alexnet = importlib.import_module("keras_deeplab.backbones.alexnet")
WHOLE, ALEXNET = data.write_shape_images, registry.BACKBONES["alexnet"]
FILES = {"model.keras", "saved_model", "metrics.json", "history.csv"}


def tiny_network(input_shape) -> keras.Model:
    inputs = keras.Input(input_shape)
    x = keras.layers.Conv2D(6, 5, 4, padding="same", activation="relu", name="conv")(inputs)
    return keras.Model(inputs, x, name="tiny")


@pytest.fixture(scope="module", autouse=True)
def tiny():
    """A few images and a small network are enough for what the command does with them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "write_shape_images", lambda root: WHOLE(root, train=10, val=5))
        patch.setitem(registry.BACKBONES, "alexnet", registry.Backbone(tiny_network, "tf"))
        yield


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("run") / "first"
    assert train_classifier.main([*SHORT, "--output", str(folder)]) == 0
    return folder


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Dark and bright ones."""
    random = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for name, shade in (("bright", 200), ("dark", 40)):
            folder = tmp_path / "photographs" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(shade, shade + 50, (20 + index, 30, 3), "uint8")
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "photographs"


@pytest.mark.slow
def test_a_run_leaves_its_files(run, tmp_path):
    assert {path.name for path in run.iterdir()} == FILES
    rows = list(csv.DictReader((run / "history.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert all(float(row["loss"]) > 0 and 0 <= float(row["val_accuracy"]) <= 1 for row in rows)
    model = keras.models.load_model(run / "model.keras")
    assert type(model) is keras_deeplab.SPPNet
    assert model.get_config()["dense"] == (8,)
    assert model.get_config()["levels"] == (3, 2, 1)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["classes"] == ["cross", "disc", "ring", "square", "triangle"]
    assert metrics["sizes"] == [16, 24]
    data.write_shape_images(tmp_path)
    served = tf.saved_model.load(str(run / "saved_model"))
    for size in (16, 32):
        ((images, labels),) = data.classification_dataset(tmp_path, "val", size=size)
        logits = served.serve(images).numpy()
        np.testing.assert_allclose(logits, model(images), rtol=1e-4, atol=1e-5)
        right = np.mean(logits.argmax(-1) == labels)
        assert metrics["accuracy"][str(size)] == pytest.approx(right)


@pytest.mark.slow
def test_sizes_take_turns_under_one_optimizer(photographs, monkeypatch, eager):
    seen = []
    original = keras_deeplab.SPPNet.train_step

    def step(self, batch):
        seen.append((int(self.optimizer.iterations), batch[0].shape[1]))
        return original(self, batch)

    monkeypatch.setattr(keras_deeplab.SPPNet, "train_step", step)
    model = keras_deeplab.SPPNet(2, "alexnet", levels=(1,), dense=())
    sizes = [16, 24, 20]
    keras_deeplab.fit_classifier(model, photographs, sizes, epochs=4, batch_size=4, verbose=0)
    # Two batches hold the eight images; the optimizer counts on from size to size.
    assert seen == [(step, (16, 24, 20, 16)[step // 2]) for step in range(8)]


@pytest.mark.slow
def test_the_training_step_is_traced_once_for_all_sizes(photographs):
    model = keras_deeplab.SPPNet(2, "alexnet", levels=(1,), dense=())
    traced = []
    original = model.train_step
    model.train_step = lambda batch: traced.append(batch[0].shape) or original(batch)
    result = keras_deeplab.fit_classifier(model, photographs, [16, 24], epochs=4, verbose=0)
    assert set(traced) == {(None, None, None, 3)}
    assert len(traced) <= 2
    assert list(result.accuracy) == [16, 24]
    assert len(result.history["loss"]) == 4


class Unregistered(keras.layers.Dense):
    """A layer that Keras cannot find by its name."""


def test_a_classifier_that_no_file_can_hold_is_an_error_before_the_training(photographs, tmp_path):
    inputs = keras.Input((None, None, 3))
    x = keras.layers.GlobalAveragePooling2D()(Unregistered(3)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    with pytest.raises(ValueError, match="`model` must be a model that can be loaded from a file"):
        keras_deeplab.fit_classifier(model, photographs, [16], epochs=1, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_models_of_other_classes_and_no_sizes_are_errors(photographs):
    model = keras_deeplab.SPPNet(3, "alexnet", levels=(1,), dense=())
    with pytest.raises(ValueError, match=r"`model` must be a classifier of 2 .*\(None, 3\)"):
        keras_deeplab.fit_classifier(model, photographs, [16], epochs=1)
    with pytest.raises(ValueError, match="`sizes` must be at least one size"):
        keras_deeplab.fit_classifier(model, photographs, [], epochs=1)


@pytest.mark.slow
def test_a_single_size_is_tested_at_a_larger_one(tmp_path, eager):
    arguments = [*SHORT, "--sizes", "16", "--epochs", "1", "--output", str(tmp_path / "run")]
    assert train_classifier.main(arguments) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert list(metrics["accuracy"]) == ["16", "20"]


@pytest.mark.slow
def test_a_run_on_a_folder(photographs, tmp_path, monkeypatch, eager, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(keras_deeplab.export, "classifier", lambda *arguments: None)
    arguments = ["--data", str(photographs), *SHORT, "--epochs", "12", "--learning-rate", "1e-2"]
    arguments += ["--levels", "2", "1", "--test-size", "17", "--dropout", "0"]
    assert train_classifier.main(arguments) == 0
    folder = tmp_path / "runs" / "photographs-spp_net-alexnet"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["classes"] == ["bright", "dark"]
    assert metrics["accuracy"] == {"16": 1.0, "24": 1.0, "17": 1.0}
    assert "17x17  1.000  (not trained at)" in capsys.readouterr().out
    assert train_classifier.main([*arguments, "--output", str(folder)]) == 2
    assert "`run_dir` must be a new or empty folder. Received: run_dir=" in capsys.readouterr().err


@pytest.mark.slow
def test_an_interrupted_run_is_one_line_and_the_next_one_gets_a_number(
    tmp_path, monkeypatch, capsys, eager
):
    class Stop(keras.callbacks.TerminateOnNaN):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(keras.callbacks, "TerminateOnNaN", Stop)
    (tmp_path / "runs" / "shapes-spp_net-alexnet").mkdir(parents=True)  # empty ones are used
    for name in ("shapes-spp_net-alexnet", "shapes-spp_net-alexnet-2"):
        assert train_classifier.main(SHORT) == 130
        folder = f"runs/{name}"
        assert (tmp_path / folder / "history.csv").exists()
        assert f"Interrupted: {folder} cannot be resumed.\n" in capsys.readouterr().out


@pytest.mark.slow
def test_a_non_finite_loss_ends_training_without_a_model(tmp_path, eager, capsys):
    arguments = [*SHORT, "--learning-rate", "1e30", "--output", str(tmp_path / "lost")]
    assert train_classifier.main(arguments) == 2
    assert "The loss became nan in epoch 1. Use a smaller" in capsys.readouterr().err
    assert not (tmp_path / "lost" / "model.keras").exists()


@pytest.mark.slow
def test_an_export_with_other_outputs_is_not_kept(run, tmp_path, monkeypatch):
    other = keras.models.load_model(run / "model.keras")
    for weight in other.weights:
        weight.assign(weight + 0.05)
    model = keras.models.load_model(run / "model.keras")
    monkeypatch.setattr(model, "export", lambda *args, **more: other.export(*args, **more))
    with pytest.raises(keras_deeplab.export.ExportError, match=r"at 97x129 probabilities differ"):
        keras_deeplab.export.classifier(model, tmp_path / "saved_model")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command_learns_all_three_sizes(tmp_path):
    """With a quarter of the filters, half of the epochs, fewer images and no dropout."""
    short = ["--epochs", "8", "--dropout", "0", "--learning-rate", "2e-3"]
    layers = [(name, filters and filters // 4, *rest) for name, filters, *rest in alexnet.LAYERS]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alexnet, "LAYERS", layers)
        patch.setattr(data, "write_shape_images", lambda root: WHOLE(root, train=1000, val=100))
        patch.setitem(registry.BACKBONES, "alexnet", ALEXNET)
        assert train_classifier.main([*short, "--output", str(tmp_path / "run")]) == 0
    accuracy = json.loads((tmp_path / "run" / "metrics.json").read_text())["accuracy"]
    assert set(accuracy) == {"64", "80", "96"}
    assert min(accuracy.values()) > 0.6
