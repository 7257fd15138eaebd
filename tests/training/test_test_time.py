from __future__ import annotations

import re

from models.networks import calibrated, small

from keras_deeplab import MultiScale, data, evaluate
from training import test_time


def test_the_rows_are_those_of_evaluate(tmp_path, capsys, monkeypatch):
    source = data.Shapes(train=1, val=3)
    monkeypatch.setattr(data, "open_source", lambda name: source)
    network = small("v3")
    path = tmp_path / "model.keras"
    wide = network.with_num_classes(source.info.num_classes)
    MultiScale(wide, (1.0, 1.5), fusion="mean").save(path)
    options = ["--model", str(path), "--limit", "2", "--scales", "0.5", "1"]
    assert test_time.main(options) == 0
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head.split(" | ")[1:4] == ["mean IoU", "boundary mean IoU", "mean IoU within 4 px"]
    names = ["plain", "output stride 8", "mirrored", "scales", "scales, mirrored", "all"]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == names
    pairs = data.evaluation_dataset(source).take(2)
    models = {
        "plain": wide,
        "all": MultiScale(wide.with_output_stride(8), (0.5, 1.0), fusion="mean", flip=True),
    }
    for name, model in models.items():
        report = evaluate(model, pairs, boundary=True, verbose=0)
        values = report["mean_iou"], report["boundary_mean_iou"], report["trimap_mean_iou"]["4"]
        cells = rows[names.index(name)].strip("| ").split(" | ")[1:]
        assert cells[:3] == [f"{100 * value:.1f}" for value in values]
        assert re.fullmatch(r"\d+", cells[3])


def test_a_model_without_a_choice_of_stride_has_no_row_for_it():
    names = [row for row, _ in test_time.variants(calibrated("unet"), (0.5, 1.0))]
    assert names == ["plain", "mirrored", "scales", "scales, mirrored", "all"]
