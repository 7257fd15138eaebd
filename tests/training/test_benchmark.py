"""The benchmark measures what it says; no test looks at how long anything took."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keras_deeplab import data
from training.benchmark import __main__ as benchmark
from training.benchmark import networks, pipeline, steps
from training.benchmark.pipeline import Files
from training.benchmark.steps import OURS, Child, Package

SMP = "segmentation_models_pytorch"
PNG = Files("20x40 PNG", (20, 40), ".png", (16, 16))
JPEG = Files("24x32 JPEG", (24, 32), ".jpg", (16, 16))
CHILD = Path(networks.__file__)


@pytest.fixture
def sources(tmp_path):
    return [
        (kind, data.Folder(pipeline.write_folder(tmp_path / kind.suffix, kind, 3)))
        for kind in (PNG, JPEG)
    ]


def test_the_files_are_a_data_set_without_faults(sources):
    for kind, source in sources:
        assert data.audit(source).splits["train"].smallest == kind.size
        assert len(source.names("train")) == 3
        assert source.info.num_classes == pipeline.CLASSES


def test_the_photographs_compress_like_photographs(tmp_path):
    kind = Files("128x256 PNG", (128, 256), ".png", (16, 16))
    root = pipeline.write_folder(tmp_path, kind, 1)
    (path,) = (root / "train" / "images").iterdir()
    raw = 128 * 256 * 3
    # Cityscapes' PNGs take about 0.37 of their pixels; noise takes all, a plain area nothing.
    assert 0.25 < path.stat().st_size / raw < 0.6
    labels = np.asarray(Image.open(root / "train" / "labels" / "0000.png"))
    assert len(np.unique(labels)) > 5
    # Areas, not speckles: neighbours mostly agree.
    assert np.mean(labels[:, 1:] == labels[:, :-1]) > 0.8


def test_seeds_make_the_files(tmp_path):
    roots = [
        pipeline.write_folder(tmp_path / name, PNG, 1, seed)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    first, same, other = ((r / "train/images/0000.png").read_bytes() for r in roots)
    assert first == same != other


def test_every_pipeline_is_measured_in_every_round(sources, capsys):
    found = pipeline.rates(sources, batch_size=2, batches=2, rounds=3)
    assert [(row["files"], row["cached"]) for row in found] == [
        (PNG.name, False),
        (PNG.name, True),
        (JPEG.name, False),
        (JPEG.name, True),
    ]
    assert all(len(row["images_per_second"]) == 3 for row in found)
    assert all(min(row["images_per_second"]) > 0 for row in found)
    assert "pipeline: 20x40 PNG, cached" in capsys.readouterr().out


def test_only_the_cached_pipeline_lives_without_its_files(sources):
    (kind, source), _ = sources
    cached = pipeline.dataset(source, kind, True, 2)
    anew = pipeline.dataset(source, kind, False, 2)
    for dataset in (cached, anew):
        pipeline.started(dataset, 3)
    for path in (source.root / "train" / "images").iterdir():
        path.unlink()
    images, labels = next(pipeline.started(cached, 2))
    assert images.shape == (2, 16, 16, 3)
    assert labels.shape == (2, 16, 16)
    with pytest.raises(Exception, match="No such file"):
        pipeline.started(anew, 4)


def test_shares_and_slowdowns():
    found = pipeline.waiting_figures([1.0, 2.0], [3.0, 4.0], [2.5, 1.5, 2.0])
    assert found["waiting_share"] == pytest.approx(0.3)
    assert found["slowdown"] == pytest.approx(2.5)


def test_ratios_are_taken_step_by_step():
    # The machine was slow from the second step on, but for one of ours.
    ours, other = {"seconds": [1.0, 3.0, 1.0]}, {"seconds": [2.0, 6.0, 6.0]}
    lacking = {"seconds": []}
    steps.with_ratios([ours, other, lacking])
    assert (ours["ratio"], other["ratio"], lacking["ratio"]) == (1, 2, None)


def planted(tmp_path, monkeypatch, code):
    """A program in place of the child's own."""
    path = tmp_path / "planted" / "child.py"
    path.parent.mkdir()
    path.write_text(code)
    monkeypatch.setattr(networks, "__file__", str(path))


CASE = {"package": OURS, "network": "mobilenet_v2", "dtype": "float32"}
CASE |= {"size": [64, 64], "batch_size": 2, "threads": 1}
STAND_IN = f"""
import runpy, sys
child = runpy.run_path({str(CHILD)!r}, run_name="child")
def build(case):
    print("noise of a library")
    losses = iter([9.0, 8.0, 0.5, 0.25])
    return losses.__next__, 7
child["BUILDERS"][{OURS!r}] = build
child["main"]()
"""


def test_a_process_makes_timed_steps_after_its_warm_up(tmp_path, monkeypatch):
    planted(tmp_path, monkeypatch, STAND_IN)
    child = Child(CASE)
    for _ in range(2):
        child.step()
    child.finish()
    row = child.row
    assert row["problem"] is None
    assert row["parameters"] == 7
    assert row["losses"] == [0.5, 0.25]
    assert len(row["seconds"]) == len(row["processor_seconds"]) == 2
    assert row["peak_bytes"] > 1e6
    assert child._process.returncode is not None


def test_a_process_that_fails_says_why(tmp_path, monkeypatch):
    planted(tmp_path, monkeypatch, STAND_IN)
    child = Child(CASE)
    for _ in range(4):
        child.step()
    child.finish()
    assert len(child.row["seconds"]) == 2
    assert child.row["problem"] == "ended with status 1: StopIteration"
    assert "peak_bytes" not in child.row


def test_memory_of_the_parent_is_not_counted():
    # The child's ru_maxrss would be that of this process, which holds TensorFlow and this block.
    block = np.ones(50_000_000)
    code = (
        f"import runpy, resource; child = runpy.run_path({str(CHILD)!r}, run_name='child');"
        "print(child['peak_bytes']())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 1e6 < int(done.stdout) < 200e6 < block.nbytes


def test_memory_is_the_highest_not_the_last():
    code = (
        f"import runpy; child = runpy.run_path({str(CHILD)!r}, run_name='child');"
        "before = child['peak_bytes'](); block = b'x' * 100_000_000; del block;"
        "print(child['peak_bytes']() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 80e6 < int(done.stdout) < 150e6


def test_a_process_imports_only_what_it_trains():
    outermost = ast.parse(CHILD.read_text()).body
    names = {
        alias.name for node in outermost if isinstance(node, ast.Import) for alias in node.names
    } | {node.module for node in outermost if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= set(sys.stdlib_module_names)


def test_packages_and_networks_fit_together():
    assert set(steps.PACKAGES) == set(networks.BUILDERS)
    for package in steps.PACKAGES.values():
        assert set(package.networks) <= set(networks.NETWORKS)
    assert next(iter(steps.PACKAGES)) == OURS
    assert set(steps.PACKAGES[OURS].networks) == set(networks.NETWORKS)


def test_packages_that_are_missing_get_a_row(tmp_path, monkeypatch, capsys):
    planted(tmp_path, monkeypatch, STAND_IN.replace("0.25", "0.25, 0.5"))
    monkeypatch.setitem(
        steps.PACKAGES, SMP, Package("SMP", ("no_such", "numpy"), ("mobilenet_v2",))
    )
    channels_last = Package("SMP, last", ("numpy", "no_such"), ("mobilenet_v2",))
    monkeypatch.setitem(steps.PACKAGES, f"{SMP}_channels_last", channels_last)
    settings = {"size": (64, 64), "batch_size": 2, "steps": 3, "threads": 1}
    found = steps.measure(["mobilenet_v2"], ["float32"], **settings)
    assert capsys.readouterr().out == "mobilenet_v2, float32: keras_deeplab\n"
    ours, missing, lacking = found
    assert ours["ratio"] == 1
    assert missing["problem"] == "not installed"
    assert lacking["problem"] == "no_such not installed"
    table = benchmark.markdown(found, benchmark.STEP_COLUMNS).splitlines()
    assert "| 7 |" in table[2]
    assert table[3] == "| mobilenet_v2 | float32 | SMP | - | not installed | - | - | - |"


def test_tables():
    row = {"network": "n", "dtype": "float32", "package": OURS, "problem": None}
    row |= {"parameters": 1234, "seconds": [1.0, 2.0], "processor_seconds": [2.0, 4.5]}
    row |= {"peak_bytes": 3 * 2**30, "ratio": 1.0}
    line = benchmark.markdown([row], benchmark.STEP_COLUMNS).splitlines()[2]
    assert line == "| n | float32 | keras_deeplab | 1,234 | 1.50 s | 1.00 | 3.25 s | 3.0 GiB |"
    row = {
        "files": "x",
        "crop_size": (8, 9),
        "cached": False,
        "images_per_second": [5.0, 10.0, 20.0],
    }
    line = benchmark.markdown([row], benchmark.RATE_COLUMNS).splitlines()[2]
    assert line == "| x | 8x9 | not cached | 10.0 |"
    row |= {"waiting_share": 0.25, "slowdown": 2.0, "cached": True}
    line = benchmark.markdown([row], benchmark.WAITING_COLUMNS).splitlines()[2]
    assert line == "| x | 8x9 | cached | 25.0% | 2.00 |"


def test_the_command_reads_a_folder_and_writes_json(sources, tmp_path, capsys):
    (_, source), _ = sources
    output = tmp_path / "out" / "speed.json"
    small = ["--size", "16", "16", "--batch-size", "2", "--batches", "1", "--rounds", "1"]
    arguments = ["--parts", "pipeline", "--data", str(source.root), "--output", str(output), *small]
    assert benchmark.main(arguments) == 0
    written = json.loads(output.read_text())
    assert set(written) == {"machine", "settings", "pipeline"}
    assert written["machine"]["cores"] == benchmark.cores() >= 1
    assert written["machine"]["tensorflow"].startswith("2.")
    assert written["settings"]["batch_size"] == 2
    assert [row["cached"] for row in written["pipeline"]] == [False, True]
    assert written["pipeline"][0]["files"] == source.root.name
    assert written["pipeline"][0]["crop_size"] == [16, 16]
    assert "| not cached |" in capsys.readouterr().out
    assert benchmark.main(["--parts", "pipeline", "--data", str(tmp_path / "none")]) == 2
    assert "or an existing folder" in capsys.readouterr().err


@pytest.mark.slow
def test_the_networks_are_trained_for_it(sources, tmp_path):
    (_, source), _ = sources
    output = tmp_path / "speed.json"
    small = ["--size", "64", "64", "--batch-size", "2", "--steps", "2", "--alone"]
    cases = ["--models", "mobilenet_v2", "--dtypes", "bfloat16", "--data", str(source.root)]
    parts = ["--parts", "step", "waiting", "--output", str(output)]
    assert benchmark.main([*small, *cases, *parts]) == 0
    written = json.loads(output.read_text())
    (row,) = written["steps"]
    assert (row["package"], row["dtype"], row["problem"]) == (OURS, "bfloat16", None)
    assert row["parameters"] == 2_764_357
    assert len(row["seconds"]) == len(row["losses"]) == 2
    assert np.isfinite(row["losses"]).all()
    assert row["losses"][1] != row["losses"][0]
    assert row["peak_bytes"] > 2**28
    assert [row["cached"] for row in written["waiting"]] == [False, True]
    for row in written["waiting"]:
        assert 0 <= row["waiting_share"] < 1
        assert [len(row[key]) for key in ("waited", "computed", "without_pipeline")] == [2, 2, 2]
