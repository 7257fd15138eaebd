"""Runs side by side: which rows there are, and what is noted."""

from __future__ import annotations

import json

import pytest
from test_html_page import lines, read

from keras_deeplab.trainer import compare, open_run

SETTINGS = {"model": "unet", "data": "a", "data_files": "12ab", "recipe": {"steps": 8, "power": 1}}
HISTORY = "epoch,loss,val_loss,val_mean_iou\n0,0.9,NA,NA\n1,0.7,0.8,0.25\n2,0.5,0.6,nan\n"
SCORES = {
    "split": "val",
    "mean_iou": 0.5,
    "per_class": {"sky": 0.25, "<b>": 0.75, "sea": None},
    "pixel_accuracy": 0.875,
}


def write(path, settings=SETTINGS, scores=SCORES, history=HISTORY, epochs=None):
    path.mkdir(parents=True)
    (path / "run.json").write_text(json.dumps(settings))
    (path / "history.csv").write_text(history)
    if epochs:
        (path / "epochs.csv").write_text(epochs)
    if scores:
        (path / "metrics.json").write_text(json.dumps(scores))
    return path


@pytest.fixture
def comparison(tmp_path):
    """A finished run, an unfinished one with another power, and one with other data."""
    other = {**SETTINGS, "recipe": {"steps": 8, "power": 0.5}}
    third = {**SETTINGS, "data_files": "34cd", "seed": 3}
    per_class = {"sky": 0.125, "road": 1.0, "<b>": 0.5}
    return compare(
        [
            write(tmp_path / "a", epochs="epoch,seconds\n0,60\n1,30\n2,15.5\n"),
            write(tmp_path / "b", other, None, HISTORY[: HISTORY.index("2,0.5")]),
            write(tmp_path / "c", third, {**SCORES, "split": "train", "per_class": per_class}),
        ]
    )


def test_other_label_maps_are_a_note(tmp_path):
    runs = [write(tmp_path / name, {**SETTINGS, "data_labels": name}) for name in "ab"]
    (note,) = compare(runs).notes
    assert "different images, label maps or classes" in note


def test_names_and_texts_of_others_are_escaped(tmp_path):
    runs = []
    for name in "ab":
        scores = {**SCORES, "per_class": {"sky\n": 0.5, f"\x1b[2J{name}": 0.5}}
        settings = {**SETTINGS, "recipe": {"name": f"\x1b[31m{name}"}}
        runs.append(write(tmp_path / name, settings, scores))
    shown = str(compare(runs))
    assert r"IoU of sky\n  " in shown
    assert r"\x1b[31ma  \x1b[31mb" in shown
    assert r"that not all runs have: \x1b[2Ja" in shown
    assert "\x1b" not in shown


def test_rows_and_notes(comparison):
    assert list(comparison.runs) == ["a", "b", "c"]
    assert comparison.rows == {
        "state": ["finished", "unfinished", "finished"],
        "mean IoU": ["0.500", "", "0.500"],
        "IoU of sky": ["0.250", "", "0.125"],
        "IoU of <b>": ["0.750", "", "0.500"],
        "pixel accuracy": ["0.875", "", "0.875"],
        "best validation": ["0.250", "0.250", "0.250"],
        "epochs": ["3", "2", "3"],
        "minutes": ["1.8", "", ""],
        "recipe.power": ["1", "0.5", "1"],
        "seed": ["", "", "3"],
    }
    assert comparison.notes == [
        "The runs have different images, label maps or classes: their scores differ for that too.",
        "Classes that not all runs have: sea, road.",
        "The runs are scored on different splits: a on val, c on train.",
    ]


def test_equal_runs_have_no_notes_and_no_settings(tmp_path):
    found = compare([write(tmp_path / "a"), write(tmp_path / "b")])
    assert found.notes == []
    assert list(found.rows)[-1] == "minutes"
    assert found.rows["IoU of sea"] == ["", ""]


def test_validations_at_different_scales_are_noted(tmp_path):
    reduced = {**SETTINGS, "recipe": {**SETTINGS["recipe"], "image_scale": 0.25}}
    found = compare([write(tmp_path / "a"), write(tmp_path / "b", reduced)])
    assert found.notes == ["The validations during the training are on images of different scales."]
    assert found.rows["recipe.image_scale"] == ["", "0.25"]


def test_the_text_has_aligned_columns(comparison):
    first, second, third, *_ = str(comparison).splitlines()
    assert first.split() == ["a", "b", "c"]
    assert second.split() == ["state", "finished", "unfinished", "finished"]
    assert second.index("unfinished") == first.index("b")
    assert third.index("0.500", 20) == third.rindex("0.500")
    assert str(comparison).endswith(comparison.notes[-1])


def test_the_page_has_the_table_and_one_curve_of_each_run(comparison):
    page = comparison.html()
    found, tags = read(page)
    assert [tag for tag, _ in tags if tag in ("script", "link", "img")] == []
    cells = [cell for cells in comparison.rows.values() for cell in cells if cell]
    assert set(cells) <= set(found)
    assert "IoU of <b>" in found
    assert all(note in found for note in comparison.notes)
    drawn = lines(page)
    assert [len(points) for points in drawn] == [1, 1, 1, 3, 2, 3, 2, 1, 2]
    assert "a, epoch 2: 0.25" in found
    assert "b, epoch 2: 0.7" in found


def test_runs_of_one_name_are_told_apart(tmp_path, monkeypatch):
    paths = [write(tmp_path / "x" / "run"), write(tmp_path / "y" / "run")]
    assert list(compare(paths).runs) == list(map(str, paths))
    assert list(compare([paths[0], paths[0]]).runs) == [f"1: {paths[0]}", f"2: {paths[0]}"]
    monkeypatch.chdir(paths[0])
    assert list(compare(["."]).runs) == ["run"]


def test_a_run_that_has_just_begun(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    run = open_run(tmp_path)
    assert (run.num_epochs, run.best_score, run.seconds, run.scores) == (0, None, None, None)
    found = compare([tmp_path])
    assert found.rows["epochs"] == ["0"]
    assert "<svg" not in found.html()


def test_damaged_tables(tmp_path):
    text = "epoch,loss\n0,0.5,7,8\nx,1\n1\n\n2,0.2\n"
    run = open_run(write(tmp_path / "a", history=text, epochs="\0\0\0"))
    assert run.points("loss")[0] == (1, 0.5)
    assert run.points("loss")[2] == (3, 0.2)
    assert run.num_epochs == 3
    with pytest.raises(ValueError, match=r"history\.csv is damaged: .* Restore it"):
        open_run(write(tmp_path / "b", history=f"epoch\n{'1' * 200_000}\n"))


@pytest.mark.parametrize(
    "change",
    [
        *({key: value} for key in ("mean_iou", "pixel_accuracy") for value in ([], {}, "0.5")),
        *({"per_class": {"sky": value}} for value in ([], {}, "0.5")),
        *({"per_class": value} for value in ([], "0.5", None)),
        *({"split": value} for value in ([], {}, 1)),
    ],
)
def test_edited_scores_are_named(tmp_path, change):
    path = write(tmp_path / "a", scores={**SCORES, **change})
    message = f"^{path / 'metrics.json'} must hold the scores of a run. Restore it"
    with pytest.raises(ValueError, match=message):
        compare([path])


def test_edited_settings_and_tables_are_compared(tmp_path):
    edited = {**SETTINGS, "data_files": [], "recipe": {"image_scale": [1]}}
    history = "epoch,loss\n0,1e308\n1,-1e308\n2,0.5\n3,0.25\n"
    seconds = "epoch,seconds\n0,1e308\n1,1e308\n"
    found = compare([write(tmp_path / "a", edited, history=history, epochs=seconds)] * 2)
    assert found.notes == []
    assert [len(points) for points in lines(found.html())] == [2, 2]
    assert len(compare([tmp_path / "a", write(tmp_path / "b")]).notes) == 2


def test_wrong_paths(tmp_path):
    with pytest.raises(ValueError, match="`paths` must be at least one folder of a run"):
        compare([])
    with pytest.raises(ValueError, match="is not the folder of a run: it has no run.json"):
        compare([tmp_path])
