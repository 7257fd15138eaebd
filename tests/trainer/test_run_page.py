"""The report of a run: its numbers, curves and commands, after a resume, and when it fails."""

from __future__ import annotations

import csv
import importlib
import json
import re
import shlex

import numpy as np
import pytest
import tensorflow as tf
from browser import browse
from eagerly import eagerly
from test_html_page import lines, read
from trainer.test_fitting import SINGLE, Stop, plain

import keras_deeplab
from keras_deeplab import data, export
from keras_deeplab.trainer import RunFolder, finishing
from keras_deeplab.trainer.run_page import _seen_from


class Named(data.Shapes):
    """Shapes whose first class has a name with markup."""

    info = data.DatasetInfo(("<b>", *data.Shapes().info.classes[1:]), data.Shapes().info.colors)


SOURCE = Named(train=4, val=3)


def fit(path, **more):
    return keras_deeplab.fit(plain(), SOURCE, SINGLE, run_dir=path, verbose=0, **more).folder


@pytest.fixture(scope="module")
def fast():
    """No tracing, and no export."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "saved_model", lambda *args, **options: None)
        with eagerly():
            yield


@pytest.fixture(scope="module")
def folder(fast, tmp_path_factory):
    return fit(tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(scope="module")
def page(folder):
    return folder.report.read_text(encoding="utf-8")


def columns(path):
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in rows[0]}


@pytest.mark.slow
def test_the_numbers_are_those_of_the_files(folder, page):
    scores = json.loads(folder.metrics.read_text())
    found, tags = read(page)
    text = " ".join(found)
    assert "Run run" in text
    for name in ("mean_iou", "pixel_accuracy", "expected_calibration_error"):
        assert f"{name.replace('_', ' ').replace('iou', 'IoU')} {scores[name]:.3f}" in text
    assert "<b>" in scores["per_class"]
    for name, iou in scores["per_class"].items():
        assert re.search(f"{re.escape(name)} +{'absent' if iou is None else f'{iou:.3f}'}", text)
    shown = [*scores["worst_images"], *scores["best_images"]]
    assert {row["name"] for row in shown} == set(SOURCE.names("val"))
    assert all(f"{row['name']}: mean IoU {row['mean_iou']:.3f}" in text for row in shown)
    recipe = json.loads(folder.arguments.read_text())["recipe"]
    assert f"recipe.learning_rate {recipe['learning_rate']}" in text
    assert f"keras_deeplab {keras_deeplab.__version__}" in text
    assert f"TensorFlow {tf.__version__}" in text
    epochs = columns(folder.epochs)
    assert f"training and validation {sum(epochs['seconds']) / 60:.1f} minutes" in text
    step = np.median(epochs["step_seconds"][1:])
    assert f"median of the epochs {step:.3f} s" in text
    assert f"images per second {SINGLE.batch_size / step:.1f}" in text
    assert f"process {max(epochs['peak_bytes']) / 1e9:.2f} GB" in text
    assert len([tag for tag, _ in tags if tag == "img"]) == 1 + 3  # confusion and three images


def test_the_times_are_plausible(folder):
    epochs = columns(folder.epochs)
    assert epochs["epoch"] == [0, 1, 2]
    for seconds, step in zip(epochs["seconds"], epochs["step_seconds"], strict=True):
        assert 0 < 2 * step < seconds < 300  # two steps, and the validation
    rates = epochs["learning_rate"]
    assert SINGLE.learning_rate > rates[0] > rates[1] > rates[2] == 0
    assert all(1e8 < peak < 1e12 for peak in epochs["peak_bytes"])


def test_the_curves_are_the_history(folder, page):
    history = columns(folder.history) | {"learning_rate": columns(folder.epochs)["learning_rate"]}
    names = ("loss", "val_loss", "mean_iou", "val_mean_iou", "learning_rate")
    drawn = lines(page)
    assert len(drawn) == len(names)
    for points in drawn:
        assert len(points) == 3
        assert points[2, 0] - points[1, 0] == pytest.approx(points[1, 0] - points[0, 0], abs=0.2)
    for one, other in ((0, 1), (2, 3)):  # two curves of one chart, on one axis
        values = np.array(history[names[one]] + history[names[other]])
        places = np.concatenate([drawn[one][:, 1], drawn[other][:, 1]])
        fitted = np.poly1d(np.polyfit(values, places, 1))
        assert fitted[1] < 0
        assert np.abs(fitted(values) - places).max() < 0.1
    shown = re.findall(r"<title>(train|val), [^<]*epoch (\d): ([\d.e-]+)<", page)
    expected = [
        (split, str(epoch + 1), f"{value:.4g}")
        for split, name in (("train", "loss"), ("val", "val_loss"))
        for epoch, value in enumerate(history[name])
    ]
    assert shown[:6] == expected


def test_the_page_is_one_file(page):
    _, tags = read(page)
    assert not [tag for tag, _ in tags if tag in ("script", "link", "iframe")]
    sources = [attrs.get("src") or attrs.get("href") or "data:" for _, attrs in tags]
    assert all(source.startswith("data:image/") or source == "data:" for source in sources)
    assert "url(" not in page
    assert "@import" not in page
    assert len([tag for tag, _ in tags if tag == "b"]) == 3  # titles of charts


def test_a_browser_shows_it(folder):
    loaded, wide = browse(
        folder.report,
        [
            {"script": "[...document.images].every(image => image.naturalWidth > 0)"},
            {"script": "document.documentElement.scrollWidth > innerWidth"},
        ],
    )
    assert loaded
    assert not wide


def test_the_commands_parse(folder, page):
    commands = re.search(r"<pre>(.*?)</pre>", page, re.DOTALL)[1].splitlines()
    assert len(commands) == 6
    for line in commands:
        program, name, *arguments = shlex.split(line)
        assert program == "keras-deeplab"
        module = importlib.import_module(f"keras_deeplab.cli.{name}")
        options = vars(module.parser().parse_args(arguments))
        if "model" in options:
            assert (folder.path / options["model"]).is_file()


def test_the_data_is_seen_from_the_folder_of_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my data").mkdir()
    run = tmp_path / "runs" / "a"
    for given, expected in (
        ("my data", "../../my data"),
        (str(tmp_path / "my data"), "../../my data"),
        ("voc:my data", "voc:../../my data"),
        ("tfds:cars", "tfds:cars"),
        ("gs://bucket/cars", "gs://bucket/cars"),
        ("shapes", "shapes"),
        ("Named", "DATA"),
    ):
        assert _seen_from(run, given) == expected


def without_times(folder):
    """The report without what differs between two runs of the same training."""
    text = folder.report.read_text(encoding="utf-8")
    return re.sub(r"<h2>Time and memory</h2>.*?(?=<h2>)", "", text, flags=re.DOTALL)


@pytest.mark.slow
def test_a_resumed_run_has_the_same_report(fast, folder, tmp_path):
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        fit(path, callbacks=[Stop()])
    assert not RunFolder(path).report.exists()
    resumed = fit(path)
    assert columns(resumed.epochs)["epoch"] == [0, 1, 2]
    assert without_times(resumed) == without_times(folder)


def test_a_failing_report_does_not_lose_the_run(tmp_path, monkeypatch, logs):
    def fail(*args):
        raise RuntimeError("no picture")

    monkeypatch.setattr(finishing, "run_page", fail)
    folder = RunFolder(tmp_path)
    finishing._write_report(folder, {}, plain(), SOURCE)
    assert f"{folder.report} could not be written." in logs.messages
    assert "no picture" in logs.text
    assert not folder.report.exists()
