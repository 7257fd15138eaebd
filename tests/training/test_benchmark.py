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
from training.benchmark import pipeline, steps

SMP = "segmentation_models.pytorch"
CASE = steps.Case("keras_deeplab", "mobilenet_v2", "float32", (64, 64), 2, 1, steps=2)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    kind = pipeline.Files("128x256 PNG", (128, 256), ".png")
    return pipeline.write_folder(tmp_path_factory.mktemp("files") / "png", kind, 3)


def test_the_peak_is_that_of_a_process_alone():
    block = np.ones(50_000_000)
    folder = str(Path(steps.__file__).parent)
    code = (
        f"import sys; sys.path.insert(0, {folder!r}); import steps; before = steps.peak_bytes();"
        "block = b'x' * 100_000_000; print(before, steps.peak_bytes() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, added = map(int, done.stdout.split())
    assert 1e6 < before < 200e6 < block.nbytes
    assert 80e6 < added < 150e6


def test_the_files_are_a_data_set_that_compresses_like_photographs(root):
    source = data.Folder(root)
    assert data.audit(source).splits["train"].smallest == (128, 256)
    assert len(source.names("train")) == 3
    assert source.info.num_classes == pipeline.CLASSES
    # Cityscapes' PNGs take about 0.37 of their pixels; noise takes all, a plain area nothing.
    assert 0.25 < (root / "train/images/0000.png").stat().st_size / (128 * 256 * 3) < 0.6
    labels = np.asarray(Image.open(root / "train" / "labels" / "0000.png"))
    assert len(np.unique(labels)) > 5
    # Areas, not speckles: neighbours mostly agree.
    assert np.mean(labels[:, 1:] == labels[:, :-1]) > 0.8


def test_steps_are_timed_after_those_to_warm_up(monkeypatch):
    losses = iter([9.0, 8.0, 0.5, 0.25])
    planted = steps.Package(lambda case: (losses.__next__, 7), (), ())
    monkeypatch.setitem(steps.PACKAGES, CASE.package, planted)
    row = steps.train(CASE)
    assert (row["parameters"], row["losses"]) == (7, [9.0, 8.0, 0.5, 0.25])
    assert len(row["seconds"]) == len(row["processor_seconds"]) == 2
    assert row["peak_bytes"] > 1e8  # TensorFlow alone


@pytest.mark.parametrize(
    "modules, problem",
    [
        (("no_such_module",), "no_such_module is not installed"),
        ((), "ended with status 1: KeyError: 'planted'"),  # the process does not have it
    ],
)
def test_a_package_that_is_missing_or_fails_is_reported(monkeypatch, modules, problem):
    package = steps.PACKAGES[SMP]._replace(modules=modules)
    monkeypatch.setitem(steps.PACKAGES, "planted", package)
    row = steps.measure(CASE._replace(package="planted"))
    assert row["problem"] == problem
    assert row["dtype"] == "float32"


def test_a_process_imports_only_what_it_trains():
    outermost = ast.parse(Path(steps.__file__).read_text()).body
    names = {
        alias.name for node in outermost if isinstance(node, ast.Import) for alias in node.names
    } | {node.module for node in outermost if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= set(sys.stdlib_module_names)


def test_tables():
    own = {"network": "n", "dtype": "float32", "package": "keras_deeplab", "problem": None}
    own |= {"parameters": 1234, "seconds": [1.0, 2.0], "processor_seconds": [2.0, 4.5]}
    own |= {"peak_bytes": 3 * 2**30}
    other = {**own, "package": SMP, "seconds": [4.5]}
    rows = [own, other, {"network": "n", "dtype": "bfloat16", "package": SMP, "problem": "lost"}]
    assert benchmark.steps_table(rows).splitlines()[2:] == [
        "| n | float32 | keras_deeplab | 1,234 | 1.50 s | 1.00 | 3.25 s | 3.0 GiB |",
        f"| n | float32 | {SMP} | 1,234 | 4.50 s | 3.00 | 3.25 s | 3.0 GiB |",
        f"| n | bfloat16 | {SMP} | - | lost | - | - | - |",
    ]


def test_the_command_reads_a_folder_and_writes_json(root, tmp_path, capsys):
    output = tmp_path / "out" / "speed.json"
    small = ["--size", "16", "--batch-size", "2", "--batches", "1", "--output", str(output)]
    assert benchmark.main(["--parts", "pipeline", "--data", str(root), *small]) == 0
    written = json.loads(output.read_text())
    assert written["cores"] == benchmark.cores() >= 1
    assert written["versions"]["tensorflow"].startswith("2.")
    assert [row["cached"] for row in written["pipeline"]] == [False, True]
    assert written["pipeline"][0]["crop_size"] == [16, 16]
    assert all(row["images_per_second"] > 0 for row in written["pipeline"])
    assert "| png | 16x16 | not cached | " in capsys.readouterr().out


@pytest.mark.slow
def test_the_networks_are_trained_for_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(steps, "PACKAGES", {CASE.package: steps.PACKAGES[CASE.package]})
    monkeypatch.setattr(benchmark, "PACKAGES", steps.PACKAGES)
    output = tmp_path / "speed.json"
    small = ["--size", "64", "--batch-size", "2", "--steps", "2", "--output", str(output)]
    cases = ["--parts", "step", "--models", "mobilenet_v2", "--dtypes", "bfloat16"]
    assert benchmark.main([*small, *cases]) == 0
    (row,) = json.loads(output.read_text())["steps"]
    assert (row["package"], row["dtype"], row["problem"]) == (CASE.package, "bfloat16", None)
    assert row["parameters"] == 2_764_357
    assert len(row["seconds"]) == 2
    assert np.isfinite(row["losses"]).all()
    assert len(set(row["losses"])) == 4
    assert row["peak_bytes"] > 2**28
    assert "| 2,764,357 |" in capsys.readouterr().out
