"""The command that converts weights, and training that starts from them."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest

import keras_deeplab
from keras_deeplab.cli import convert, train


def test_a_file_becomes_a_model(shared, tmp_path, capsys):
    output = tmp_path / "voc.keras"
    file = shared / "pretrained" / "deeplabv3_257_mv_gpu.tflite"
    assert convert.main([str(file), "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "missing keys: none" in printed
    assert "a DeepLabV3 of 714,325 parameters" in printed
    model = keras.models.load_model(output)
    assert (model.num_classes, model.output_stride) == (21, 8)


def test_options_become_arguments(tmp_path, monkeypatch):
    given = {}

    def from_pretrained(file, **arguments):
        given.update(arguments, file=file)
        return keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])

    monkeypatch.setattr(keras_deeplab, "from_pretrained", from_pretrained)
    output = ["--output", str(tmp_path / "a.keras"), "--overwrite"]
    options = ["--output-stride", "16", "--classes", "4", "--moving-averages"]
    (tmp_path / "a.keras").write_text("before")
    assert convert.main(["b.pth", *output, *options]) == 0
    assert given.pop("file") == "b.pth"
    assert given == {"output_stride": 16, "num_classes": 4, "moving_averages": True}
    assert keras.models.load_model(tmp_path / "a.keras").count_params() == 4


def run(tmp_path, *arguments: str) -> int:
    short = ["--epochs", "1", "--steps-per-epoch", "1", "--batch-size", "2"]
    crop = ["--crop-size", "48", "48", "--output", str(tmp_path / "run")]
    return train.main([*short, *crop, *arguments])


@pytest.mark.slow
def test_training_starts_from_own_weights(tmp_path, capsys):
    options = {"backbone_options": {"depth_multiplier": 0.25}}
    small = {"aspp_filters": 8, "head_filters": None}
    file = str(tmp_path / "own.keras")
    keras_deeplab.DeepLabV3(3, "mobilenet_v2", **small, **options).save(file)
    assert run(tmp_path, "--weights", file) == 0
    printed = capsys.readouterr().out
    assert "logits was not loaded: logits/kernel is" in printed
    assert "folded" not in printed
    model = keras.models.load_model(tmp_path / "run" / "model.keras")
    assert type(model) is keras_deeplab.DeepLabV3
    assert model.get_config()["aspp_filters"] == 8
    stored = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (stored["model"], stored["backbone"]) == ("deeplab_v3", "mobilenet_v2")
    assert stored["weights"] == file


@pytest.mark.slow
def test_training_unfolds_the_norms_of_a_litert_file(shared, tmp_path, capsys):
    file = shared / "pretrained" / "mobilenet_v2_1.0_224_quant.tflite"
    assert run(tmp_path, "--weights", str(file)) == 0
    assert "51 batch norms had been folded away" in capsys.readouterr().out
    model = keras.models.load_model(tmp_path / "run" / "model.keras")
    assert type(model) is keras_deeplab.DeepLabV3Plus
    assert np.std(model.backbone.get_layer("stem_norm").gamma) > 0
