"""The delivered model: it is present, small, and predicts what its card states."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from eagerly import eagerly
from PIL import Image

import keras_deeplab
from keras_deeplab import data, runtimes
from keras_deeplab.cli import predict

FOLDER = Path(__file__).parents[2] / "examples" / "camvid"
FILE = FOLDER / "model.keras"


@pytest.fixture(autouse=True, scope="module")
def eager():
    """To trace several views takes longer than a few small images."""
    with eagerly():
        yield


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return keras.models.load_model(FILE)


@pytest.mark.slow
def test_it_is_small_and_needs_nothing_to_train(model):
    assert FILE.stat().st_size < 12_000_000
    with zipfile.ZipFile(FILE) as archive:
        assert b"optimizer" not in archive.read("model.weights.h5")
    assert getattr(model, "optimizer", None) is None
    assert all(weight.dtype == "float32" for weight in model.weights)
    assert "bfloat16" not in json.dumps(model.get_config())


def test_the_card_says_what_was_measured():
    columns = [
        json.loads((FOLDER / f"metrics{kind}.json").read_text())
        for kind in ("", "_enlarged", "_one_view", "_int8")
    ]
    card = (FOLDER / "README.md").read_text()
    readme = (FOLDER.parents[1] / "README.md").read_text()
    assert {found["split"] for found in columns} == {"val"}
    assert f"with {100 * columns[0]['mean_iou']:.1f} mean IoU" in readme
    rows = {"mean IoU": [found["mean_iou"] for found in columns]}
    for name in columns[0]["per_class"]:
        rows[name] = [found["per_class"][name] for found in columns]
    for name, scores in rows.items():
        assert f"| {name} | {' | '.join(f'{100 * score:.1f}' for score in scores)} |" in card
    for word in ("research use", "SegNet", "mean IoU"):
        assert word in card


@pytest.mark.slow
def test_predict_works_after_the_clone(tmp_path, capsys):
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 255, (90, 120, 3), "uint8")
    Image.fromarray(photo).save(tmp_path / "photo.png")
    command = ["--model", str(FILE), "--images", str(tmp_path / "photo.png")]
    assert predict.main([*command, "--output", str(tmp_path / "out")]) == 0
    labels = np.asarray(Image.open(tmp_path / "out" / "photo_labels.png"))
    assert labels.shape == (90, 120)
    assert labels.max() < 11
    known = json.loads((FOLDER / "dataset.json").read_text())["classes"]
    printed = capsys.readouterr().out
    assert any(f"{name} " in printed.split(": ", 1)[1] for name in known)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["one_view", "int8"])
def test_its_scores_are_those_of_the_card(model, shared, kind):
    """A few of the images it was chosen on: far above what chance or a wrong scaling reaches."""
    scored, source = model.model, data.open_source(shared / "camvid")  # one of the views, for time
    if kind == "int8":
        pytest.importorskip("ai_edge_litert")
        file = FOLDER / "model_int8.tflite"
        assert file.stat().st_size < 4_000_000
        scored = runtimes.open_exported(file)
        assert scored.metadata.info == source.info
    few = data.evaluation_dataset(source, cache=False).shard(34, 0)
    found = keras_deeplab.evaluate(scored, few, class_names=source.info.classes, verbose=0)
    stored = json.loads((FOLDER / f"metrics_{kind}.json").read_text())
    assert found["pixel_accuracy"] == pytest.approx(stored["pixel_accuracy"], abs=0.04)
    assert found["mean_iou"] == pytest.approx(stored["mean_iou"], abs=0.14)
