"""The command of the story's figures, on small networks."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
from PIL import Image

import keras_deeplab as kd
from training import ablation, story


@pytest.mark.slow
def test_the_command_writes_figures_and_tables(tmp_path, monkeypatch, eager):
    small = {"small": lambda: kd.UNet(3, filters=2, depth=1, batch_norm=True)}
    monkeypatch.setattr(story, "NETWORKS", small)
    monkeypatch.setattr(story, "SIDE", 65)
    monkeypatch.setattr(story, "ROUNDS", 2)
    few = {"shapes": partial(kd.data.Shapes, 20, 4), "far mark": partial(ablation.FarMark, 20, 4)}
    monkeypatch.setattr(ablation, "SOURCES", few)
    Image.effect_mandelbrot((80, 70), (-2, -1, 1, 1), 50).convert("RGB").save(tmp_path / "a.png")
    command = ["--output", str(tmp_path / "out"), "--image", str(tmp_path / "a.png")]
    assert story.main([*command, "--ablation", "UNet, depth 2", "--steps", "1"]) == 0
    found = json.loads((tmp_path / "out" / "story.json").read_text())
    assert {row["field"] for row in found["kernels"]} == {7}
    assert [row["parameters"] for row in found["kernels"]] == [200_768, 110_784, 36_928]
    (fields,) = found["fields"]
    assert int(fields["theoretical"]) >= fields["effective"] > 1
    for source in ("shapes", "far mark"):
        (row,) = found[f"ablation on {source}"]
        assert row["receptive_field"] == 44
        assert 0 < row["mean_iou"] < 1
    names = ["ablation", "fields", "live_taps", "pyramid", "taps", "transposed"]
    assert sorted(path.stem for path in (tmp_path / "out").glob("*.png")) == names


def test_the_transposed_maps_grow_by_the_rates():
    """Four 3x3 kernels see 9x9 samples, with doubled rates 31x31."""
    for rates, side in ((story.STACKS["plain"], 9), (story.STACKS["atrous"], 31)):
        field = kd.analysis.transposed_receptive_field(story.ones(*rates), (33, 33))[..., 0]
        assert np.ptp(np.nonzero(field)[0]) + 1 == side


@pytest.mark.slow
def test_a_small_photograph_is_an_error(tmp_path, capsys):
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    assert story.main(["--image", str(tmp_path / "a.png"), "--output", str(tmp_path)]) == 2
    assert "must have at least 385x385 pixels" in capsys.readouterr().err
