"""The command that converts weights, and training that starts from them."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest

import keras_deeplab
from keras_deeplab.cli import convert, train

SMALL = {"aspp_filters": 8, "head_filters": None}
OPTIONS = {"backbone_options": {"depth_multiplier": 0.25}}


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "own.keras"
    model = keras_deeplab.DeepLabV3(3, "mobilenet_v2", **SMALL, **OPTIONS)
    model.save(path)
    model.save_weights(path.with_suffix(".weights.h5"))
    return path


def test_a_file_becomes_a_model(shared, tmp_path, capsys):
    output = tmp_path / "voc.keras"
    file = shared / "pretrained" / "deeplabv3_257_mv_gpu.tflite"
    assert convert.main([str(file), "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "missing keys: none" in printed
    assert "a DeepLabV3 of 714,325 parameters" in printed
    model = keras.models.load_model(output)
    assert (model.num_classes, model.output_stride) == (21, 8)
    arguments = ["--output", str(output), "--overwrite", "--output-stride", "16", "--classes", "4"]
    assert convert.main([str(file), *arguments]) == 0
    assert "logits predicts 4 classes, the checkpoint's 21" in capsys.readouterr().out
    model = keras.models.load_model(output)
    assert (model.num_classes, model.output_stride) == (4, 16)


@pytest.mark.parametrize(
    "weights, output, message",
    [
        ("own", "model.h5", "`--output` must be a path that ends in .keras"),
        ("own", "there.keras", "Use --overwrite"),
        ("missing.pth", "new.keras", "there is no such file"),
        ("photo.jpg", "new.keras", "its content is none of the formats"),
        ("pascal_voc", "new.keras", "NAME/MODEL/BACKBONE"),
    ],
)
def test_errors_are_one_line(own, tmp_path, monkeypatch, capsys, weights, output, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.keras").write_text("mine")
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff\xe0photo")
    file = str(own) if weights == "own" else weights
    assert convert.main([file, "--output", output]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert (tmp_path / "there.keras").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photo.jpg", "there.keras"]


def run(tmp_path, *arguments: str) -> int:
    short = ["--epochs", "1", "--steps-per-epoch", "1", "--batch-size", "2"]
    crop = ["--crop-size", "48", "48", "--output", str(tmp_path / "run")]
    return train.main([*short, *crop, *arguments])


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_training_starts_from_own_weights(own, tmp_path, capsys, suffix):
    given = [] if suffix == ".keras" else ["--model", "deeplab_v3"]
    file = str(own.with_suffix(suffix))
    if suffix == ".weights.h5":  # it does not say which network it belongs to
        assert run(tmp_path, *given, "--weights", file) == 2
        assert "another network" in capsys.readouterr().err
        return
    assert run(tmp_path, *given, "--weights", file) == 0
    printed = capsys.readouterr().out
    assert "logits predicts 6 classes, the checkpoint's 3: it was not loaded" in printed
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


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--backbone", "xception41"], "on the backbone 'mobilenet_v2', but `backbone` is"),
        (["--weights", "pascal"], "no such weights are published for any model"),
        (["--weights", "missing.pth"], "there is no such file"),
    ],
)
def test_weights_that_do_not_fit(own, tmp_path, capsys, arguments, message):
    arguments = arguments if "--weights" in arguments else ["--weights", str(own), *arguments]
    assert run(tmp_path, *arguments) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
