"""Scores on folds and seeds."""

from __future__ import annotations

import json

import numpy as np
import pytest

from keras_deeplab import MultiScale, UNet, data, evaluate, export, load_model
from keras_deeplab.evaluation import prediction_settings
from keras_deeplab.files import write_json
from keras_deeplab.models.multi_scale import at_image_scale
from keras_deeplab.trainer import RunFolder
from training import folds

pytestmark = pytest.mark.slow

ARGUMENTS = "--model unet --steps 2 --steps-per-epoch 2 --batch-size 2 --crop-size 32"


@pytest.mark.parametrize("multi_scale, image_scale", [(None, 1), ((0.5, 1.0), 1), (None, 0.5)])
def test_each_scale_is_one_of_the_network_alone(multi_scale, image_scale, tmp_path, eager):
    source, folder = data.HeldOut(data.Shapes(train=6, val=0)), RunFolder(tmp_path)
    network = at_image_scale(UNet(6, depth=1, filters=4), image_scale)
    model = MultiScale(network, multi_scale) if multi_scale else network
    model.save(folder.best_model)
    write_json(folder.metrics, {"mean_iou": -1.0, **prediction_settings(model)})
    pairs = data.evaluation_dataset(source)
    alone, larger = network, MultiScale(network, [1.5], fusion="mean")
    expected = [evaluate(one, pairs, verbose=0)["mean_iou"] for one in (alone, larger)]
    if multi_scale is None:
        expected[0] = -1.0  # of the run
    assert [folds.score(folder, source, scale) for scale in (1.0, 1.5)] == pytest.approx(expected)


def test_mean_and_deviation_of_folds_and_seeds(tmp_path, monkeypatch, capsys, eager):
    source = data.Shapes(train=6, val=3)
    opened = {"shapes": source}  # and a source is returned as it is
    monkeypatch.setattr(data, "open_source", lambda given: opened.get(given, given))
    monkeypatch.setattr(export, "saved_model", lambda *_, **options: None)
    parts = ["1", source.names("train")[0]]
    arguments = [*ARGUMENTS.split(), "--output", str(tmp_path), "--folds", *parts]
    arguments += ["--seeds", "3", "4", "--test-scales", "1", "1.5"]
    arguments += ["--set", "model={'depth': 1, 'filters': 4}"]
    assert folds.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    table = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    assert table[0] == ["fold", "seed", "scale 1", "scale 1.5"]
    runs = [row for row in table[2:] if row[0] not in ("mean", "deviation")]
    assert [row[:2] for row in runs] == [[part, seed] for part in parts for seed in "34"]
    model = load_model(tmp_path / "1-4" / "model.keras", compile=False)
    pairs = data.evaluation_dataset(data.HeldOut(source, 1))
    larger = MultiScale(model, [1.5], fusion="mean")
    expected = [evaluate(one, pairs, verbose=0)["mean_iou"] for one in (model, larger)]
    assert runs[1][2:] == [f"{100 * value:.1f}" for value in expected]
    values = np.array([[float(cell) for cell in row[2:]] for row in runs])
    for name, reduce in (("mean", np.mean), ("deviation", np.std)):
        row = next(row for row in table if row[0] == name)
        np.testing.assert_allclose([float(c) for c in row[-2:]], reduce(values, 0), atol=0.11)
    stored = json.loads((tmp_path / "1-3" / "scale_1.5.json").read_text())
    assert f"{100 * stored['mean_iou']:.1f}" == runs[0][3]
    monkeypatch.setattr(folds.kd, "fit", None)  # a second call trains and scores nothing
    monkeypatch.setattr(folds.kd, "evaluate", None)
    assert folds.main(arguments) == 0
    capsys.readouterr()
    assert folds.main([*arguments, "--learning-rate", "0.5"]) == 2  # not the scores of another one
    assert "recipe.learning_rate was " in capsys.readouterr().err


@pytest.mark.parametrize("name, advice", [("metrics", "Restore it"), ("scale_0.5", "Delete it")])
def test_a_damaged_file_of_a_run_is_named(tmp_path, name, advice):
    write_json(tmp_path / "metrics.json", {"mean_iou": 0.5, "test_time_augmentation": None})
    path = tmp_path / f"{name}.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=f"^{path} is not readable as JSON: .*{advice}"):
        folds.score(RunFolder(tmp_path), data.HeldOut(data.Shapes(train=6, val=0)), 0.5)


def test_damaged_arguments_are_named(tmp_path):
    path = tmp_path / "folds.json"
    path.write_text("")
    with pytest.raises(ValueError, match=f"^{path} is not readable as JSON: .*another folder"):
        folds.check_same(path, {"seed": 0})
