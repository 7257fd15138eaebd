"""The benchmark measures what it says; no test looks at how long anything took."""

from __future__ import annotations

import ast
import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from models.networks import zero_kernels
from PIL import Image

import keras_deeplab
from keras_deeplab import data
from training.benchmark import __main__ as benchmark
from training.benchmark import convolutions, pipeline, race, routes, steps

SMP = "segmentation_models.pytorch"
CASE = steps.Case("keras_deeplab", "v3_plus_mobilenet_v2", "float32", (64, 64), 2, 1)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    kind = pipeline.Files("128x256 PNG", (128, 256), ".png")
    return pipeline.write_folder(tmp_path_factory.mktemp("files") / "png", kind, 3)


def test_the_peak_is_that_of_a_process_alone():
    block = np.ones(50_000_000)
    code = (
        f"import sys; sys.path.insert(0, {str(Path(race.__file__).parent)!r}); import race;"
        "before = race.peak_bytes();"
        "block = b'x' * 100_000_000; print(before, race.peak_bytes() - before)"
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


PLANTED = """
import itertools, sys, time
from typing import NamedTuple
from training.benchmark.race import Package

class Case(NamedTuple):
    package: str
    log: str

def build(case):
    numbers = itertools.count()
    def step():
        number = next(numbers)
        with open(case.log, "a") as log:
            log.write(f"{case.package}{number} ")
        print("a line of a library", flush=True)
        if case.package == "failing" and number == 1:
            raise KeyError("planted")
        return number
    return step, {"parameters": 7}

PACKAGES = {
    "first": Package(build, (), ()),
    "failing": Package(build, ("json",), ()),
    "missing": Package(build, ("no_such_module",), ()),
    "second": Package(build, (), ()),
}
"""


@pytest.mark.slow
def test_programs_take_turns_and_failures_are_reported(tmp_path, monkeypatch):
    program = tmp_path / "race.py"
    program.write_text(Path(race.__file__).read_text())
    monkeypatch.setattr(race, "__file__", str(program))
    (tmp_path / "planted.py").write_text(PLANTED)
    monkeypatch.syspath_prepend(tmp_path)
    planted = importlib.import_module("planted")
    monkeypatch.setitem(sys.modules, "training.benchmark.planted", planted)
    log = tmp_path / "log"
    rows = race.race("planted", [planted.Case(name, str(log)) for name in planted.PACKAGES], 2)
    assert [row["problem"] for row in rows] == [
        None,
        "ended with status 1: KeyError: 'planted'",
        "no_such_module is not installed",
        None,
    ]
    assert log.read_text().split() == [
        *("first0", "failing0", "second0", "first1", "failing1", "second1"),
        *("first2", "second2", "first3", "second3"),
    ]
    first = rows[0]
    assert first["values"] == [0, 1, 2, 3]
    assert first["parameters"] == 7
    assert len(first["seconds"]) == len(first["processor_seconds"]) == 2
    assert 1e6 < first["peak_bytes"] < 200e6  # Python alone


@pytest.mark.parametrize("module", [race, routes, steps])
def test_a_process_imports_only_what_it_runs(module):
    outermost = ast.parse(Path(module.__file__).read_text()).body
    names = {
        alias.name for node in outermost if isinstance(node, ast.Import) for alias in node.names
    } | {node.module for node in outermost if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= {*sys.stdlib_module_names, "training"}


def test_formulations_of_a_convolution_are_timed(monkeypatch):
    monkeypatch.setattr(
        convolutions, "MAPS", (convolutions.Map(1, 9, 4, 5, 2), convolutions.Map(1, 9, 4, None, 2))
    )
    dense, depthwise = convolutions.measure("float32", rounds=2)
    assert list(dense["seconds"]) == ["Keras", "native", "taps", "chosen"]
    assert {"Keras", "chosen"} <= depthwise["seconds"].keys()
    assert all(0 < value < 10 for both in dense["seconds"].values() for value in both)
    dense["seconds"] = {"Keras": [0.25, 1.0], "chosen": [0.125, 0.5]}
    assert benchmark.convolutions_table([dense]).splitlines()[2] == (
        "| float32 | 1 x 9x9 | 4 to 5 | 2 | 250 / 1000 | - | - | 125 / 500 |"
    )


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


def test_the_table_of_inference_compares_with_the_best_peer():
    def row(package, seconds, problem=None):
        settings = {"network": "n", "dtype": "float32", "package": package}
        return {**settings, "problem": problem, "seconds": seconds}

    rows = [row("keras_deeplab, LiteRT", [0.1, 0.3, 0.2]), row("torch", [0.5]), row("x", [0.4])]
    rows.append(row("y", [], "y is not installed"))
    assert benchmark.inference_table(rows).splitlines()[2:] == [
        "| n | float32 | keras_deeplab, LiteRT | 200 | 0.50 |",
        "| n | float32 | torch | 500 | 1.25 |",
        "| n | float32 | x | 400 | 1.00 |",
        "| n | float32 | y | y is not installed | - |",
    ]


def test_routes_of_inference_compute_in_the_precision_of_their_table():
    packages = {
        dtype: [case.package for case in routes.cases("v3_plus_resnet50", dtype, 2)]
        for dtype in ("float32", "bfloat16", "int8")
    }
    assert packages["float32"] == list(routes.PACKAGES)
    for dtype in ("bfloat16", "int8"):
        assert len(set(packages[dtype])) == len(packages[dtype])
        assert set(packages[dtype]) < set(packages["float32"])
    assert "keras_deeplab, predict" in packages["bfloat16"]
    assert not {"torch", "keras_deeplab, OpenVINO"} & set(packages["int8"])  # wrong at any size


@pytest.mark.slow
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


def test_the_networks_are_those_of_the_table():
    name, arguments = steps.NETWORKS[CASE.network]
    with zero_kernels():
        model = getattr(keras_deeplab, name)(steps.CLASSES, **arguments)
    assert model.count_params() == 2_764_357


@pytest.mark.slow
def test_a_network_is_trained_for_it(tmp_path, monkeypatch, capsys):
    small = {CASE.network: ("UNet", {"depth": 1, "filters": 4})}
    for module in (race, steps):
        shutil.copy(module.__file__, tmp_path)
    with (tmp_path / "steps.py").open("a") as program:
        program.write(f"NETWORKS = {small}\n")
    monkeypatch.setattr(race, "__file__", str(tmp_path / "race.py"))
    monkeypatch.setattr(benchmark, "PACKAGES", {CASE.package: steps.PACKAGES[CASE.package]})
    output = tmp_path / "speed.json"
    options = ["--size", "64", "--batch-size", "2", "--steps", "2", "--output", str(output)]
    cases = ["--parts", "step", "--models", CASE.network, "--dtypes", "bfloat16"]
    assert benchmark.main([*options, *cases]) == 0
    (row,) = json.loads(output.read_text())["steps"]
    assert (row["package"], row["dtype"], row["problem"]) == (CASE.package, "bfloat16", None)
    parameters = keras_deeplab.UNet(steps.CLASSES, depth=1, filters=4).count_params()
    assert row["parameters"] == parameters
    assert len(row["seconds"]) == 2
    assert np.isfinite(row["values"]).all()
    assert len(set(row["values"])) == 4
    assert row["peak_bytes"] > 2**28
    assert f"| {parameters:,} |" in capsys.readouterr().out
