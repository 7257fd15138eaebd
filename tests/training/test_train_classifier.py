from __future__ import annotations

import csv
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
from training import train_classifier

SHORT = ["--sizes", "24", "16", "--epochs", "3", "--batch-size", "4", "--dense", "8"]


class FewShapes(data.ShapeClasses):
    def __init__(self) -> None:
        super().__init__(train=10, val=5)


def tiny_network(input_shape) -> keras.Model:
    inputs = keras.Input(input_shape)
    x = keras.layers.Conv2D(6, 5, 4, padding="same", activation="relu", name="conv")(inputs)
    return keras.Model(inputs, x, name="tiny")


@pytest.fixture(scope="module", autouse=True)
def tiny():
    """A few images and a small network are enough for what the command does with them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "ShapeClasses", FewShapes)
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


def test_a_run_leaves_its_files(run):
    assert {path.name for path in run.iterdir()} == {
        *("model.keras", "saved_model", "metrics.json", "history.csv", "run.json", "dataset.json")
    }
    model = keras.models.load_model(run / "model.keras")
    assert type(model) is keras_deeplab.SPPNet
    assert model.get_config()["dense"] == (8,)
    assert model.get_config()["levels"] == (3, 2, 1)
    metrics = json.loads((run / "metrics.json").read_text())
    assert (metrics["sizes"], metrics["test_size"]) == ([16, 24], 32)
    assert (metrics["split"], metrics["images"]) == ("val", 5)
    assert metrics["classes"] == list(data.ShapeClasses().classes)
    assert json.loads((run / "run.json").read_text())["seed"] == 0
    served = tf.saved_model.load(str(run / "saved_model"))
    for size in (16, 24, 32, 45):
        dataset = data.classification_dataset(data.ShapeClasses(), "val", size=size)
        (images, labels), *_ = dataset
        logits = served.serve(images).numpy()
        np.testing.assert_allclose(logits, model(images), rtol=1e-4, atol=1e-5)
        if size in (16, 24, 32):
            right = np.mean(logits.argmax(-1) == labels)
            assert metrics["accuracy"][str(size)] == pytest.approx(right)


@pytest.mark.filterwarnings("ignore:Even though the")
def test_sizes_take_turns_under_one_optimizer(tmp_path, monkeypatch):
    seen = []
    original = keras_deeplab.SPPNet.train_step

    def step(self, batch):
        seen.append((int(self.optimizer.iterations), batch[0].shape[1]))
        return original(self, batch)

    monkeypatch.setattr(keras_deeplab.SPPNet, "train_step", step)
    tf.config.run_functions_eagerly(True)
    try:
        arguments = [*SHORT, "--sizes", "16", "24", "20", "--epochs", "4"]
        assert train_classifier.main([*arguments, "--output", str(tmp_path / "run")]) == 0
    finally:
        tf.config.run_functions_eagerly(False)
    # Three batches hold the ten images; the optimizer counts on from size to size.
    assert seen == [(step, (16, 20, 24, 16)[step // 3]) for step in range(12)]
    with (tmp_path / "run" / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["size"]) for row in rows] == [
        *(("0", "16"), ("1", "20"), ("2", "24"), ("3", "16"))
    ]
    assert all(float(row["loss"]) > 0 and 0 <= float(row["val_accuracy"]) <= 1 for row in rows)
    model = keras.models.load_model(tmp_path / "run" / "model.keras")
    assert int(model.optimizer.iterations) == 12


def test_the_table_shows_one_head_for_all_sizes(run):
    model = keras.models.load_model(run / "model.keras")
    options = train_classifier.parser().parse_args(["--sizes", "16", "24"])
    table = train_classifier.scores_table(model, options, {16: 0.5, 24: 1.0, 32: 0.25}, 5)
    assert [line.split() for line in table.splitlines()[2:5]] == [
        ["16x16", "4x4", "84", "0.500"],
        ["24x24", "6x6", "84", "1.000"],
        ["32x32", "8x8", "84", "0.250", "(not", "trained", "at)"],
    ]
    assert f"One dense head of {84 * 8 + 8 + 8 * 5 + 5} weights" in table


def test_a_run_on_a_folder(photographs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["--data", str(photographs), *SHORT, "--epochs", "12", "--learning-rate", "1e-2"]
    arguments += ["--levels", "2", "1", "--test-size", "17", "--dropout", "0"]
    assert train_classifier.main(arguments) == 0
    folder = tmp_path / "runs" / "photographs-spp_net-alexnet"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["classes"] == ["bright", "dark"]
    assert metrics["accuracy"] == {"16": 1.0, "24": 1.0, "17": 1.0}
    printed = capsys.readouterr().out
    assert "train: 4 bright, 4 dark" in printed
    assert "17x17" in printed
    before = (folder / "model.keras").read_bytes()
    assert train_classifier.main([*arguments, "--epochs", "1"]) == 0  # the next run gets a number
    assert (folder.with_name(f"{folder.name}-2") / "metrics.json").exists()
    assert (folder / "model.keras").read_bytes() == before


def test_nothing_is_written_over(run, tmp_path, capsys):
    before = (run / "model.keras").read_bytes()
    assert train_classifier.main([*SHORT, "--output", str(run)]) == 2
    assert f"{run} is not empty: choose another --output" in capsys.readouterr().err
    assert (run / "model.keras").read_bytes() == before
    (tmp_path / "file").write_text("mine")
    assert train_classifier.main([*SHORT, "--output", str(tmp_path / "file")]) == 2
    assert (tmp_path / "file").read_text() == "mine"


def test_a_run_that_another_process_has_just_ended_is_left_alone(tmp_path, capsys, monkeypatch):
    """It locked the folder after this process had found it empty."""
    folder, lock = tmp_path / "run", train_classifier.RunFolder.lock

    def lock_too_late(run):
        lock(run)
        run.best_model.write_text("another run's")

    monkeypatch.setattr(train_classifier.RunFolder, "lock", lock_too_late)
    assert train_classifier.main([*SHORT, "--output", str(folder)]) == 2
    assert f"{folder} is not empty: choose another --output" in capsys.readouterr().err
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "model.keras": "another run's"
    }


def test_an_export_that_answers_differently_is_not_left(run, tmp_path, capsys, monkeypatch):
    other = keras.models.load_model(run / "model.keras")
    for weight in other.weights:
        weight.assign(weight + 0.05)
    model = keras.models.load_model(run / "model.keras")
    monkeypatch.setattr(model, "export", lambda *args, **more: other.export(*args, **more))
    images = np.random.default_rng(0).uniform(0, 255, (2, 24, 24, 3)).astype("float32")
    with pytest.raises(keras_deeplab.export.ExportError, match=r"at 24x24 probabilities differ"):
        train_classifier.export(model, tmp_path / "saved_model", [images])
    assert not list(tmp_path.iterdir())


def test_a_lost_model_is_not_kept(tmp_path, capsys):
    arguments = [*SHORT, "--learning-rate", "1e30", "--output", str(tmp_path / "lost")]
    assert train_classifier.main(arguments) == 2
    assert "the loss became nan in epoch 1" in capsys.readouterr().err
    assert not (tmp_path / "lost" / "model.keras").exists()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--sizes", "16"], "--sizes must be two or more sizes, received [16]"),
        (["--sizes", "16", "16"], "--sizes must be two or more sizes, received [16]"),
        (["--test-size", "24"], "--test-size must be none of the sizes [16, 24], received 24"),
        (["--dropout", "1"], "`dropout`"),
        (["--data", "nowhere"], "missing folder (2)"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(arguments, words, tmp_path, capsys):
    output = tmp_path / "run"
    assert train_classifier.main([*SHORT, *arguments, "--output", str(output)]) == 2
    assert words in capsys.readouterr().err
    assert not output.exists()


def test_broken_photographs_are_named(photographs, tmp_path, capsys):
    (photographs / "train" / "dark" / "broken.jpg").write_bytes(b"no picture")
    (photographs / "val" / "dark" / "0.png").unlink()
    (photographs / "val" / "dark" / "1.png").unlink()
    arguments = ["--data", str(photographs), *SHORT, "--output", str(tmp_path / "run")]
    assert train_classifier.main(arguments) == 2
    said = capsys.readouterr().err
    assert "train/dark/broken.jpg" in said
    assert "empty class (1)" in said
    assert not (tmp_path / "run").exists()


def test_defaults_depend_on_the_data(capsys):
    for given, sizes, test_size, dense in (
        ("shapes", [64, 80], 96, [256]),
        ("photographs", [180, 224], 268, [4096, 4096]),
    ):
        options = train_classifier.parser().parse_args(["--data", given])
        train_classifier.complete(options)
        assert (options.sizes, options.test_size, options.dense) == (sizes, test_size, dense)
    with pytest.raises(SystemExit):
        train_classifier.main(["--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert "default: 64 80 for shapes, 180 224 for a folder" in words


@pytest.mark.slow
def test_the_default_command_learns_all_three_sizes(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "ShapeClasses", FewShapes.__mro__[1])
        patch.setitem(
            registry.BACKBONES,
            "alexnet",
            registry.Backbone(keras_deeplab.backbones.alexnet, "torch"),
        )
        assert train_classifier.main(["--output", str(tmp_path / "run")]) == 0
    accuracy = json.loads((tmp_path / "run" / "metrics.json").read_text())["accuracy"]
    assert set(accuracy) == {"64", "80", "96"}
    assert min(accuracy.values()) > 0.9
