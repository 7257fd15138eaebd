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
from training import benchmark, benchmark_child, benchmark_pipeline, benchmark_steps
from training.benchmark_child import Case
from training.benchmark_pipeline import Files, Rate, Waiting
from training.benchmark_steps import NOT_INSTALLED, OURS, Result

SMP = "segmentation_models_pytorch"
PNG = Files("20x40 PNG", (20, 40), ".png", (16, 16))
JPEG = Files("24x32 JPEG", (24, 32), ".jpg", (16, 16))
CHILD = Path(benchmark_child.__file__)


@pytest.fixture
def sources(tmp_path):
    return [
        (kind, data.Folder(benchmark_pipeline.write_folder(tmp_path / kind.suffix, kind, 3)))
        for kind in (PNG, JPEG)
    ]


def test_the_files_are_a_data_set_without_faults(sources):
    for kind, source in sources:
        assert data.audit(source).splits["train"].smallest == kind.size
        assert len(source.names("train")) == 3
        assert source.info.num_classes == benchmark_pipeline.CLASSES


def test_the_photographs_compress_like_photographs(tmp_path):
    kind = Files("128x256 PNG", (128, 256), ".png", (16, 16))
    root = benchmark_pipeline.write_folder(tmp_path, kind, 1)
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
        benchmark_pipeline.write_folder(tmp_path / name, PNG, 1, seed)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    first, same, other = ((r / "train/images/0000.png").read_bytes() for r in roots)
    assert first == same != other


def test_every_pipeline_is_measured_in_every_round(sources):
    said = []
    found = benchmark_pipeline.rates(sources, batch_size=2, batches=2, rounds=3, report=said.append)
    assert [(rate.files, rate.cached) for rate in found] == [
        (PNG.name, False),
        (PNG.name, True),
        (JPEG.name, False),
        (JPEG.name, True),
    ]
    assert all(len(rate.images_per_second) == 3 for rate in found)
    assert all(min(rate.images_per_second) > 0 for rate in found)
    assert said[1] == "pipeline: 20x40 PNG, cached"


def test_only_the_cached_pipeline_lives_without_its_files(sources):
    (kind, source), _ = sources
    cached = benchmark_pipeline.pipeline(source, kind, True, 2)
    anew = benchmark_pipeline.pipeline(source, kind, False, 2)
    for dataset in (cached, anew):
        benchmark_pipeline.started(dataset, 3)
    for path in (source.root / "train" / "images").iterdir():
        path.unlink()
    images, labels = next(benchmark_pipeline.started(cached, 2))
    assert images.shape == (2, 16, 16, 3)
    assert labels.shape == (2, 16, 16)
    with pytest.raises(Exception, match="No such file"):
        benchmark_pipeline.started(anew, 4)


def test_medians_shares_and_slowdowns():
    rate = Rate("x", False, (8, 8), [10.0, 30.0, 20.0])
    assert rate.to_dict()["median_images_per_second"] == 20
    wait = Waiting("x", True, (8, 8), [1.0, 2.0], [3.0, 4.0], [2.5, 1.5, 2.0])
    assert wait.to_dict()["waiting_share"] == pytest.approx(0.3)
    assert wait.to_dict()["slowdown"] == pytest.approx(2.5)


def test_ratios_are_taken_step_by_step():
    # The machine was slow from the second step on, but for one of ours.
    ours = Result("n", "float32", OURS, seconds=[1.0, 3.0, 1.0])
    other = Result("n", "float32", SMP, seconds=[2.0, 6.0, 6.0])
    lacking = Result("n", "float32", "keras_hub", problem=NOT_INSTALLED)
    benchmark_steps.with_ratios([ours, other, lacking])
    assert (ours.ratio, other.ratio, lacking.ratio) == (1, 2, None)
    assert other.to_dict()["median_seconds"] == 6
    assert lacking.to_dict()["median_seconds"] is None


def test_steps_are_made_in_turn():
    made = []

    class Runner:
        def __init__(self, name):
            self.name = name

        def step(self):
            made.append(self.name)

    benchmark_steps.in_turn([Runner("a"), Runner("b"), Runner("c")], 2)
    assert "".join(made) == "abcabc"


def planted(tmp_path, monkeypatch, code):
    """A program in place of the child's own."""
    path = tmp_path / "planted" / "child.py"
    path.parent.mkdir()
    path.write_text(code)
    monkeypatch.setattr(benchmark_child, "__file__", str(path))


CASE = Case(OURS, "mobilenet_v2", "float32", (64, 64), 2, 1)
STAND_IN = f"""
import runpy, sys
child = runpy.run_path({str(CHILD)!r}, run_name="child")
def build(case):
    print("noise of a library")
    losses = iter([9.0, 8.0, 0.5, 0.25])
    return losses.__next__, 7
child["PACKAGES"][{OURS!r}] = build
child["main"]()
"""


def test_a_process_answers_after_its_warm_up(tmp_path, monkeypatch):
    planted(tmp_path, monkeypatch, STAND_IN)
    with benchmark_steps.running([CASE]) as (child,):
        benchmark_steps.in_turn([child], 2)
    result = child.result
    assert result.problem is None
    assert result.parameters == 7
    assert result.losses == [0.5, 0.25]
    assert len(result.seconds) == len(result.processor_seconds) == 2
    assert result.peak_bytes > 1e6
    assert child._process.returncode is not None


def test_a_process_that_fails_says_why(tmp_path, monkeypatch):
    planted(tmp_path, monkeypatch, STAND_IN)
    with benchmark_steps.running([CASE]) as (child,):
        benchmark_steps.in_turn([child], 4)
    assert len(child.result.seconds) == 2
    assert child.result.problem == "ended with status 1: StopIteration"
    assert child.result.peak_bytes is None


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


def test_tables_and_networks_fit_together():
    assert set(benchmark_steps.RIVALS) == set(benchmark_child.NETWORKS)
    rivals = {package for packages in benchmark_steps.RIVALS.values() for package in packages}
    everything = {OURS, *rivals}
    assert everything == set(benchmark_child.PACKAGES)
    assert everything == set(benchmark_steps.TITLES) == set(benchmark_steps.NEEDS)


def test_packages_that_are_missing_are_said(tmp_path, monkeypatch):
    planted(tmp_path, monkeypatch, STAND_IN.replace("0.25", "0.25, 0.5"))
    needs = {**benchmark_steps.NEEDS, SMP: ("no_such_package", "numpy")}
    needs[f"{SMP}_channels_last"] = ("numpy", "no_such_package")
    monkeypatch.setattr(benchmark_steps, "NEEDS", needs)
    said = []
    found = benchmark_steps.measure(
        ["mobilenet_v2"],
        ["float32"],
        size=(64, 64),
        batch_size=2,
        steps=3,
        threads=1,
        report=said.append,
    )
    assert said == ["mobilenet_v2, float32: keras_deeplab"]
    ours, missing, lacking = found
    assert ours.ratio == 1
    assert missing.problem == "not installed"
    assert lacking.problem == "no_such_package not installed"
    table = benchmark.steps_table(found).splitlines()
    assert "| 7 |" in table[2]
    title = "segmentation_models.pytorch"
    assert table[3] == f"| mobilenet_v2 | float32 | {title} | - | not installed | - | - | - |"


def test_tables():
    done = Result("n", "float32", OURS, 1234, [1.0, 2.0], [2.0, 4.5], [0.0], 3 * 2**30, ratio=1.0)
    line = benchmark.steps_table([done]).splitlines()[2]
    assert line == "| n | float32 | keras_deeplab | 1,234 | 1.50 s | 1.00 | 3.25 s | 3.0 GiB |"
    assert done.to_dict()["median_processor_seconds"] == 3.25
    rate = Rate("x", False, (8, 9), [10.0])
    assert benchmark.rates_table([rate]).splitlines()[2] == "| x | 8x9 | not cached | 10.0 |"
    wait = Waiting("x", True, (8, 9), [1.0], [3.0], [2.0])
    assert benchmark.waiting_table([wait]).splitlines()[2] == "| x | 8x9 | cached | 25.0% | 2.00 |"


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
    assert "is no folder" in capsys.readouterr().err


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
