from __future__ import annotations

import re

import pytest
from models.networks import calibrated, small

from keras_deeplab import MultiScale, data, evaluate
from keras_deeplab.crf import DenseCRF
from keras_deeplab.evaluation import prediction_settings
from keras_deeplab.models.multi_scale import at_image_scale
from training import test_time

SCALES = (0.5, 1.0)
CRF = DenseCRF(steps=2)


@pytest.mark.slow
def test_the_rows_are_those_of_evaluate(tmp_path, capsys, monkeypatch):
    source = data.Shapes(train=1, val=3)
    monkeypatch.setattr(data, "open_source", lambda name: source)
    model = small("unet").with_num_classes(source.info.num_classes)
    MultiScale(model, (1.0, 1.5), fusion="mean").save(tmp_path / "model.keras")
    several = MultiScale(model, SCALES, fusion="mean")
    monkeypatch.setattr(test_time, "variants", lambda inner, *_: [("a", inner), ("b", several)])
    assert test_time.main(["--model", str(tmp_path / "model.keras"), "--limit", "2"]) == 0
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head.split(" | ")[1:4] == ["mean IoU", "boundary mean IoU", "mean IoU within 4 px"]
    for name, row, one in zip("ab", rows, (model, several), strict=True):
        pairs = data.evaluation_dataset(source).take(2)
        report = evaluate(one, pairs, boundary=True, verbose=0)
        values = report["mean_iou"], report["boundary_mean_iou"], report["trimap_mean_iou"]["4"]
        *cells, milliseconds = row.strip("| ").split(" | ")
        assert cells == [name, *(f"{100 * value:.1f}" for value in values)]
        assert re.fullmatch(r"\d+", milliseconds)


@pytest.mark.slow
def test_the_variants():
    rows = dict(test_time.variants(calibrated("v3"), SCALES, CRF))
    settings = {name: prediction_settings(model) for name, model in rows.items()}
    views = {
        name: [(view["scales"], view["flip"]) for view in found["test_time_augmentation"]]
        for name, found in settings.items()
    }
    assert views == {
        "plain": [],
        "output stride 8": [],
        "scale 1.5": [((1.5,), False)],
        "scale 2": [((2.0,), False)],
        "mirrored": [((1.0,), True)],
        "scales": [(SCALES, False)],
        "scales, mirrored": [(SCALES, True)],
        "dense CRF": [],
        "stride 8, scales, mirrored": [(SCALES, True)],
        "all": [(SCALES, True)],
    }
    fine = ["output stride 8", "stride 8, scales, mirrored", "all"]
    assert [name for name, found in settings.items() if found["output_stride"] == 8] == fine
    refined = [name for name, found in settings.items() if "crf" in found]
    assert refined == ["dense CRF", "all"]
    assert settings["all"]["crf"] == CRF.to_dict()


@pytest.mark.parametrize("scale", [1, 0.5])
def test_a_model_without_a_choice_of_stride_has_no_row_for_it(scale):
    model = at_image_scale(calibrated("unet"), scale)
    rows = dict(test_time.variants(model, SCALES, CRF))
    assert {prediction_settings(row)["image_scale"] for row in rows.values()} == {scale}
    names = list(rows)
    enlarged = ["scale 1.5", "scale 2"]
    several = ["mirrored", "scales", "scales, mirrored"]
    assert names == ["plain", *enlarged, *several, "dense CRF", "all"]
