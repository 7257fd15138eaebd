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
from training.benchmark.steps import OURS, Child

SMP = "segmentation_models_pytorch"
PNG = Files("20x40 PNG", (20, 40), ".png", (16, 16))
CHILD = Path(networks.__file__)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return data.Folder(pipeline.write_folder(tmp_path_factory.mktemp("png"), PNG, 3))


def test_the_files_are_a_data_set_without_faults(source, tmp_path):
    assert data.audit(source).splits["train"].smallest == PNG.size
    assert len(source.names("train")) == 3
    assert source.info.num_classes == pipeline.CLASSES
    image = "train/images/0000.png"
    same, other = (pipeline.write_folder(tmp_path / str(seed), PNG, 1, seed) for seed in (0, 1))
    first = (source.root / image).read_bytes()
    assert (same / image).read_bytes() == first != (other / image).read_bytes()


def test_the_photographs_compress_like_photographs(tmp_path):
    root = pipeline.write_folder(tmp_path, Files("", (128, 256), ".png", (16, 16)), 1)
    # Cityscapes' PNGs take about 0.37 of their pixels; noise takes all, a plain area nothing.
    assert 0.25 < (root / "train/images/0000.png").stat().st_size / (128 * 256 * 3) < 0.6
    labels = np.asarray(Image.open(root / "train" / "labels" / "0000.png"))
    assert len(np.unique(labels)) > 5
    # Areas, not speckles: neighbours mostly agree.
    assert np.mean(labels[:, 1:] == labels[:, :-1]) > 0.8


def test_every_pipeline_is_measured_in_every_round(source, capsys):
    found = pipeline.rates([(PNG, source)], batch_size=2, batches=2, rounds=3)
    assert [(row["files"], row["cached"]) for row in found] == [(PNG.name, False), (PNG.name, True)]
    assert all(len(row["images_per_second"]) == 3 for row in found)
    assert all(min(row["images_per_second"]) > 0 for row in found)
    assert capsys.readouterr().out == "20x40 PNG, uncached\n20x40 PNG, cached\n"


def test_shares_ratios_and_slowdowns():
    found = pipeline.waiting_figures([1.0, 2.0], [3.0, 4.0], [2.5, 1.5, 2.0])
    assert found["waiting_share"] == pytest.approx(0.3)
    assert found["slowdown"] == pytest.approx(2.5)
    # The machine was slow from the second step on, but for one of ours.
    ours, other = {"seconds": [1.0, 3.0, 1.0]}, {"seconds": [2.0, 6.0, 6.0]}
    lacking = {"seconds": []}
    steps.with_ratios([ours, other, lacking])
    assert (ours["ratio"], other["ratio"], lacking["ratio"]) == (1, 2, None)


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


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A program in place of the child's own, whose network fails in the third step."""
    path = tmp_path / "planted" / "child.py"
    path.parent.mkdir()
    path.write_text(STAND_IN)
    monkeypatch.setattr(networks, "__file__", str(path))


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("count", [2, 4])
def test_a_process_makes_timed_steps_or_says_why_it_fails(count):
    child = Child({"package": OURS, "network": "mobilenet_v2", "dtype": "float32"})
    for _ in range(count):
        child.step()
    child.finish()
    row = child.row
    assert row["parameters"] == 7
    assert row["losses"] == [0.5, 0.25]
    assert len(row["seconds"]) == len(row["processor_seconds"]) == 2
    assert row["problem"] == (None if count == 2 else "ended with status 1: StopIteration")
    assert row.get("peak_bytes", 0) > 1e6 or count == 4
    assert child._process.returncode is not None


def test_memory_is_the_highest_of_the_process_alone():
    # The child's ru_maxrss would be that of this process, which holds TensorFlow and this block.
    block = np.ones(50_000_000)
    code = (
        f"import runpy; child = runpy.run_path({str(CHILD)!r}, run_name='child');"
        "before = child['peak_bytes'](); block = b'x' * 100_000_000; del block;"
        "print(before, child['peak_bytes']() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, added = map(int, done.stdout.split())
    assert 1e6 < before < 200e6 < block.nbytes
    assert 80e6 < added < 150e6


def test_a_process_imports_only_what_it_trains():
    outermost = ast.parse(CHILD.read_text()).body
    names = {
        alias.name for node in outermost if isinstance(node, ast.Import) for alias in node.names
    } | {node.module for node in outermost if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= set(sys.stdlib_module_names)
    assert set(steps.PACKAGES) == set(networks.BUILDERS)


@pytest.mark.usefixtures("stand_in")
def test_packages_that_are_missing_get_a_row(monkeypatch, capsys):
    monkeypatch.setattr(
        steps,
        "PACKAGES",
        {
            OURS: steps.PACKAGES[OURS],
            SMP: ("SMP", ("numpy", "no_such"), ("mobilenet_v2",)),
            "keras_hub": ("KerasHub", ("no_such",), ("resnet50_dense_32",)),
        },
    )
    ours, lacking = steps.measure(["mobilenet_v2"], ["float32"], 2, size=(64, 64))
    assert capsys.readouterr().out == "mobilenet_v2, float32: keras_deeplab\n"
    assert ours["ratio"] == 1
    assert lacking["problem"] == "no_such not installed"
    table = benchmark.markdown([ours, lacking], benchmark.STEP_COLUMNS).splitlines()
    assert "| 7 |" in table[2]
    assert table[3] == "| mobilenet_v2 | float32 | SMP | - | no_such not installed | - | - | - |"


def test_tables():
    row = {"network": "n", "dtype": "float32", "package": OURS, "problem": None}
    row |= {"parameters": 1234, "seconds": [1.0, 2.0], "processor_seconds": [2.0, 4.5]}
    row |= {"peak_bytes": 3 * 2**30, "ratio": 1.0}
    line = benchmark.markdown([row], benchmark.STEP_COLUMNS).splitlines()[2]
    assert line == "| n | float32 | keras_deeplab | 1,234 | 1.50 s | 1.00 | 3.25 s | 3.0 GiB |"
    row = {"files": "x", "crop_size": (8, 9), "cached": False, "images_per_second": [5.0, 10.0, 20]}
    line = benchmark.markdown([row], benchmark.RATE_COLUMNS).splitlines()[2]
    assert line == "| x | 8x9 | not cached | 10.0 |"
    row |= {"waiting_share": 0.25, "slowdown": 2.0, "cached": True}
    line = benchmark.markdown([row], benchmark.WAITING_COLUMNS).splitlines()[2]
    assert line == "| x | 8x9 | cached | 25.0% | 2.00 |"


def test_the_command_reads_a_folder_and_writes_json(source, tmp_path, capsys):
    output = tmp_path / "out" / "speed.json"
    small = ["--size", "16", "--batch-size", "2", "--batches", "1", "--rounds", "1"]
    arguments = ["--parts", "pipeline", "--data", str(source.root), "--output", str(output), *small]
    assert benchmark.main(arguments) == 0
    written = json.loads(output.read_text())
    assert set(written) == {"machine", "settings", "pipeline"}
    assert written["machine"]["cores"] == benchmark.cores() >= 1
    assert written["machine"]["tensorflow"].startswith("2.")
    assert written["settings"]["batch_size"] == 2
    assert [row["cached"] for row in written["pipeline"]] == [False, True]
    assert written["pipeline"][0]["crop_size"] == [16, 16]
    assert "| not cached |" in capsys.readouterr().out


@pytest.mark.slow
def test_the_networks_are_trained_for_it(source, tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "PACKAGES", {OURS: steps.PACKAGES[OURS]})
    output = tmp_path / "speed.json"
    small = ["--size", "64", "--batch-size", "2", "--steps", "2", "--data", str(source.root)]
    cases = ["--models", "mobilenet_v2", "--dtypes", "bfloat16", "--output", str(output)]
    assert benchmark.main([*small, *cases, "--parts", "step", "waiting"]) == 0
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
