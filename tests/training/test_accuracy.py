"""Scores after the same minutes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from keras_deeplab import data
from training import accuracy


def test_a_class_without_pixels_in_val_has_no_score():
    common = {"steps": 5, "seconds": 60.0}
    classes = ({"a": 0.5, "b": None, "c": None}, {"a": 0.6, "b": 0.25, "c": None})
    runs = [{**common, "mean_iou": 0.5, "per_class": each} for each in classes]
    assert accuracy.cells(runs)[-3:] == ["55.0", "25.0", "absent"]


@pytest.mark.slow
def test_a_row_has_the_means_over_the_seeds_and_is_computed_once(
    tmp_path, monkeypatch, capsys, eager
):
    monkeypatch.setitem(accuracy.DRAWN, "textures", lambda: data.Shapes(train=8, val=3))
    monkeypatch.setattr(accuracy, "PILOT", 3)
    monkeypatch.setattr(accuracy, "SMP_MODULE", "a_module_that_is_not_installed")
    get = accuracy.kd.recipes.get
    small = {"model": {"filters": 4, "depth": 1}, "batch_size": 2}
    monkeypatch.setattr(accuracy.kd.recipes, "get", lambda *names: get(*names).replace(**small))
    models = ["unet", accuracy.SMP]
    arguments = ["--models", *models, "--seeds", "0", "5", "--output", str(tmp_path)]
    assert accuracy.main([*arguments, "--minutes", "0.01"]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    runs = [json.loads((tmp_path / f"unet-{seed}.json").read_text()) for seed in (0, 5)]
    scores = [100 * run["mean_iou"] for run in runs]
    assert scores[0] != scores[1]
    assert runs[0]["steps"] == runs[1]["steps"] > 1
    row = dict(zip(table[0][1:], table[2][1:], strict=True))
    assert table[2][0] == "unet"
    assert row["steps"] == f"{runs[0]['steps']}"
    np.testing.assert_allclose(float(row["mean IoU"]), np.mean(scores), atol=0.06)
    np.testing.assert_allclose(float(row["deviation"]), np.std(scores), atol=0.06)
    discs = [100 * run["per_class"]["disc"] for run in runs]
    np.testing.assert_allclose(float(row["disc"]), np.mean(discs), atol=0.06)
    assert table[3] == [accuracy.SMP, "is not installed"]
    monkeypatch.setattr(accuracy.kd, "fit", None)  # a second call trains nothing
    assert accuracy.main([*arguments, "--minutes", "0.01"]) == 0
    assert accuracy.main([*arguments, "--minutes", "0.3"]) == 2  # not the scores of other minutes
    assert "minutes was 0.01" in capsys.readouterr().err
    damaged = tmp_path / "unet-5.json"
    damaged.write_text("{")
    assert accuracy.main([*arguments, "--minutes", "0.01"]) == 2
    assert f"{damaged} is not readable as JSON" in capsys.readouterr().err
