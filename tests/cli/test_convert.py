"""The command that converts weights, and training that starts from them."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest

import keras_deeplab
from keras_deeplab import data
from keras_deeplab.cli import convert, train


@pytest.mark.slow
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
    options = ["--output-stride", "16", "--num-classes", "4", "--moving-averages"]
    (tmp_path / "a.keras").write_text("before")
    assert convert.main(["b.pth", *output, *options]) == 0
    assert given.pop("file") == "b.pth"
    assert given == {"output_stride": 16, "num_classes": 4, "moving_averages": True}
    assert keras.models.load_model(tmp_path / "a.keras").count_params() == 4


@pytest.mark.slow
def test_training_unfolds_the_norms_of_a_litert_file(shared, tmp_path, capsys, monkeypatch, eager):
    file = shared / "pretrained" / "mobilenet_v2_1.0_224_quant.tflite"
    short = "--epochs 1 --steps-per-epoch 1 --batch-size 2 --crop-size 48 48"
    small = "model={'aspp_rates':(),'aspp_filters':8,'decoder_filters':8}"
    output = ["--output", str(tmp_path / "run"), "--set", small]
    monkeypatch.setattr(keras_deeplab.export, "saved_model", lambda *_, **options: None)
    monkeypatch.setattr(data, "open_source", lambda _: data.Shapes(train=4, val=2))
    assert train.main([*short.split(), *output, "--weights", str(file)]) == 0
    assert "51 batch norms had been folded away" in capsys.readouterr().out
    model = keras.models.load_model(tmp_path / "run" / "model.keras")
    assert type(model) is keras_deeplab.DeepLabV3Plus
    assert np.std(model.backbone.get_layer("stem_norm").gamma) > 0
    stored = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (stored["backbone"], stored["weights"]) == ("mobilenet_v2", str(file))
