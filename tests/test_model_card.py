from __future__ import annotations

import json

import keras
import pytest
import yaml
from models.networks import calibrated
from PIL import Image

import keras_deeplab as kd
from keras_deeplab.cli import card as command
from keras_deeplab.model_card import escaped

NASTY = 'a|b](http://c.d) <img src=x> "\n---\n# <b>'
RECIPE = kd.recipes.get("finetune").replace(crop_size=(64, 96), batch_size=4).to_dict()


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    calibrated("v3_plus").save(folder / "model.keras")
    per_class = {"sky": 0.91234, NASTY: None, "car": 0.25}
    scores = {"split": "val", "mean_iou": 0.58117, "pixel_accuracy": 0.87654, "images": 1234}
    content = {
        "metrics": {**scores, "per_class": per_class},
        "dataset": {"classes": list(per_class), "colors": [[1, 2, 255], [0, 0, 0], [9, 9, 9]]},
        "run": {
            "data": "/secret/place/streets",
            "weights": "/secret/w.pth",
            "steps_per_epoch": 7,
            "recipe": RECIPE,
        },
    }
    for name, value in content.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    (folder / "history.csv").write_text("epoch,val_mean_iou\n0,NA\n1,0.5\n2,0.58\n")
    return folder


def parts(text):
    _, front, body = text.split("\n---\n", 1)[0], *text.removeprefix("---\n").split("\n---\n", 1)
    return yaml.safe_load(front), body


def test_the_figures_are_those_of_the_run(run):
    text = kd.card(calibrated("v3_plus"), run, license="cc-by-4.0")
    front, body = parts(text)
    assert (front["license"], front["library_name"]) == ("cc-by-4.0", "keras")
    (result,) = front["model-index"][0]["results"]
    assert result["dataset"] == {"name": "streets", "type": "streets", "split": "val"}
    assert [m["value"] for m in result["metrics"]] == [0.5812, 0.8765]
    parameters = f"{calibrated('v3_plus').count_params():,} parameters"
    for part in (
        "# mine\n",
        parameters,
        "On the 1,234 images of val of streets, whole images: 58.1 mean IoU, 87.7 pixel accuracy",
        "| sky | `#0102ff` | 91.2 |",
        "21 steps of 4 images, crops of 96x64",
        "**Started from**: w\\.pth",
        "The checkpoint with the best mean IoU on this split was kept",
        "Lowest IoU: car (25.0), sky (91.2).",
        "Without a score, as they do not occur: a\\|b",
    ):
        assert part in body
    assert "secret" not in text
    assert "predictions.png" not in text
    Image.new("RGB", (2, 2)).save(run / "predictions.png")
    assert "](predictions.png)" in kd.card(calibrated("v3_plus"), run, license="mit")


def test_precision_recall_and_f1_are_shown_where_a_run_has_them(run):
    model, content = calibrated("v3_plus"), json.loads((run / "metrics.json").read_text())
    first, nasty, last = content["per_class"]
    content["f1"] = {first: 0.9541, nasty: None, last: 0.4}
    content["precision"] = {first: 0.9, nasty: None, last: None}
    content["recall"] = {first: 1, nasty: None, last: 0.0}
    (run / "metrics.json").write_text(json.dumps(content))
    rows = kd.card(model, run, license="mit").splitlines()
    for row in (
        "| class | color | IoU | F1 | precision | recall |",
        "| sky | `#0102ff` | 91.2 | 95.4 | 90.0 | 100.0 |",
        "| car | `#090909` | 25.0 | 40.0 | absent | 0.0 |",
    ):
        assert row in rows
    (run / "metrics.json").write_text(json.dumps(content | {"recall": [1, None, 0]}))
    with pytest.raises(ValueError, match=r"metrics.json must hold scores of the 3 classes"):
        kd.card(model, run, license="mit")


def test_input_sizes_and_scales_are_the_models(run):
    network, inputs = calibrated("v3_plus"), keras.Input((64, 96, 3))
    reduced = kd.MultiScale(network, (0.25,))
    for model, *expected in (
        (network, "any size"),
        (keras.Model(inputs, network(inputs)), "96x64 (width x height)"),
        (kd.MultiScale(network, (0.5, 1.0)), "max of the scales 0.5, 1;"),
        (
            kd.MultiScale(reduced, (0.5, 1.0), fusion="mean", flip=True),
            "mean of the scales 0.5, 1, each also mirrored;",
            "computes on the image at 0.25 of its size.",
        ),
    ):
        text = kd.card(model, run, license="mit")
        assert all(part in text for part in expected)


def test_names_have_no_markup(run):
    content = json.loads((run / "run.json").read_text())
    text = kd.card(calibrated("v3_plus"), run, license="mit", data=NASTY, repo="user/mine")
    front, body = parts(text)
    assert front["model-index"][0]["results"][0]["dataset"]["name"] == NASTY
    assert "<img" not in body.replace("\\<img", "")
    assert "](http" not in body
    rows = [line for line in body.splitlines() if line.startswith("| ")]
    assert len(rows) == 5
    assert {line.replace("\\|", "").count("|") for line in rows} == {4}
    assert content["data"] not in text
    assert escaped("\x1b[2J" + "x" * 2000).startswith("\\\\x1b\\[2J")
    assert len(escaped("x" * 2000)) == 1000


@pytest.mark.slow
def test_its_code_runs(run, monkeypatch):
    monkeypatch.chdir(run)
    Image.new("RGB", (40, 30)).save("photo.jpg")
    monkeypatch.setattr(kd.export, "saved_model", lambda model, path: None)
    text = kd.card(calibrated("v3_plus"), run, license="mit")
    code = text.split("```python\n")[1].split("```")[0]
    names = {}
    exec(code, names)
    assert names["labels"].shape == (30, 40)
    assert 'kd.load_model("hf://user/x")' in kd.card(
        calibrated("v3_plus"), run, license="mit", repo="user/x"
    )


def test_its_code_has_the_value_range_of_the_data(run):
    content = json.loads((run / "dataset.json").read_text())
    (run / "dataset.json").write_text(json.dumps({**content, "range": [0, 20000]}))
    text = kd.card(calibrated("v3_plus"), run, license="mit")
    assert 'kd.predict(model, "image.tif", value_range=(0, 20000))' in text


def test_what_is_missing_or_does_not_fit(run):
    model = calibrated("v3_plus")
    with pytest.raises(TypeError, match="license"):
        kd.card(model, run)
    with pytest.raises(ValueError, match="`license` must be the identifier"):
        kd.card(model, run, license="My licence")
    with pytest.raises(ValueError, match="`repo` must be 'USER/NAME'"):
        kd.card(model, run, license="mit", repo="a")
    (run / "run.json").unlink()
    with pytest.raises(ValueError, match="`data` must be the name of the data set"):
        kd.card(model, run, license="mit")
    (run / "history.csv").unlink()
    text = kd.card(model, run, license="mit", data="streets")
    assert "## Training" not in text
    assert "was kept" not in text
    info = {"classes": ["a", "b"]}
    (run / "dataset.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=r"metrics.json must hold scores of the 2 classes"):
        kd.card(model, run, license="mit", data="streets")
    (run / "metrics.json").unlink()
    with pytest.raises(ValueError, match=r"metrics.json is not a regular file"):
        kd.card(model, run, license="mit", data="streets")


CHANGES = [{"crop_size": None}, {"scales": [1]}, {"learning_rate": "x"}]
CHANGES += [{"batch_size": "<b>4</b>"}, {"crop_size": [64, "**64**"]}]


@pytest.mark.parametrize("change", CHANGES)
def test_an_edited_run_is_one_error(run, change):
    content = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(content | {"recipe": RECIPE | change}))
    with pytest.raises(ValueError, match=r"run\.json lacks parts of a recipe"):
        kd.card(calibrated("v3_plus"), run, license="mit")
    (run / "run.json").write_text(json.dumps(content | {"recipe": {"name": "finetune"}}))
    with pytest.raises(ValueError, match=r"run\.json lacks parts of a recipe"):
        kd.card(calibrated("v3_plus"), run, license="mit")


def test_places_of_this_machine_are_not_shown(run):
    content = json.loads((run / "run.json").read_text())
    places = ("/secret/a:b/streets", "~/secret:1/streets", "voc:/secret/streets")
    for place in (*places, r"C:\secret\streets", r"C:secret\streets"):
        (run / "run.json").write_text(json.dumps(content | {"data": place, "weights": place}))
        text = kd.card(calibrated("v3_plus"), run, license="mit")
        assert "streets" in text
        assert "secret" not in text


@pytest.mark.slow
def test_the_command_replaces_no_edited_card(run, capsys):
    arguments = ["--run", str(run), "--license", "cc-by-4.0", "--repo", "user/mine"]
    assert command.main(arguments) == 0
    assert "user/mine" in (run / "README.md").read_text()
    (run / "README.md").write_text("edited")
    assert command.main(arguments) == 2
    assert "Use --overwrite to replace it" in capsys.readouterr().err
    assert (run / "README.md").read_text() == "edited"
    assert command.main([*arguments, "--overwrite"]) == 0
    assert (run / "README.md").read_text() != "edited"
