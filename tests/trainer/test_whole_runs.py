"""Runs of the command with options that change how the model is trained."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_deeplab
from keras_deeplab import data
from keras_deeplab.cli import train

SHORT = ["--epochs", "1", "--batch-size", "4", "--crop-size", "48", "64"]


def test_several_scales_class_weights_and_tensorboard(small, tmp_path):
    folder = tmp_path / "run"
    as_v2 = ["--recipe", "v2", "--set", "batch_norm=train", "multi_scale=(0.5, 1.0)"]
    more = ["--class-weights", "median", "--tensorboard", "--distribute", "mirrored"]
    assert train.main([*SHORT, *as_v2, *more, "--output", str(folder)]) == 0
    model = keras.models.load_model(folder / "last.keras")
    assert isinstance(model, keras_deeplab.MultiScale)
    assert (model.get_config()["scales"], model.fusion) == ((0.5, 1.0), "max")
    assert model.model.output_stride == 8
    source = data.open_source("shapes")
    labels = source.dataset("train").map(lambda _, label: label)
    expected = keras_deeplab.losses.class_weights(labels, 6, "median")
    assert max(expected) > 2 * min(expected)
    np.testing.assert_allclose(model.loss.class_weights, expected, rtol=1e-6)
    assert model.loss.stride == 8
    for split in ("train", "validation"):
        assert list((folder / "tensorboard" / split).glob("events*"))
    assert json.loads((folder / "metrics.json").read_text())["images"] == 3
    assert (folder / "saved_model" / "saved_model.pb").exists()


ON_TWO_CPUS = """
import sys
import pytest
import tensorflow as tf
sys.path[:0] = sys.argv[1].split()
from trainer import tiny_run
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
tiny_run.small(pytest.MonkeyPatch())
raise SystemExit(tiny_run.train.main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_a_run_on_two_devices_is_that_on_one(small, tmp_path):
    found = {}
    for name in ("none", "mirrored"):
        folder = tmp_path / name
        still = ["--set", "model={'dropout': 0.0}", "optimizer=sgd", "--loss", "cross_entropy"]
        still += ["--stage2-share", "1", "--distribute", name]
        paths = " ".join(str(Path(__file__).parents[up]) for up in (2, 1))
        command = [sys.executable, "-c", ON_TWO_CPUS, paths, *SHORT, *still]
        done = subprocess.run(
            [*command, "--output", str(folder)],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        with (folder / "history.csv").open() as file:
            found[name] = [float(row["loss"]) for row in csv.DictReader(file)]
        weights = keras.models.load_model(folder / "last.keras", compile=False).get_weights()
        found[f"{name} weights"] = np.concatenate([np.ravel(weight) for weight in weights])
    assert len(found["none"]) == 2
    np.testing.assert_allclose(found["mirrored"], found["none"], rtol=1e-3)
    np.testing.assert_allclose(found["mirrored weights"], found["none weights"], atol=1e-3)
