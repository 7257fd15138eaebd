"""Runs on several replicas and in several processes against the same run in one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from keras_deeplab import distribution
from keras_deeplab.trainer import workers

RUN = Path(__file__).with_name("distributed_run.py")
LIMIT = 540  # seconds for a process, on a machine with much else to do


def environment(**more: str) -> dict[str, str]:
    paths = os.pathsep.join([str(RUN.parents[2]), str(RUN.parents[1] / "models")])
    fixed = {"PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    return {**os.environ, **fixed, **more}


def options(distribute: str, folder: Path, **more: object) -> dict[str, object]:
    output = str(folder / f"{distribute}{{}}.npz")
    return {"distribute": distribute, "output": output, "plant": None, **more}


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def finished(processes: list[subprocess.Popen]) -> list[int]:
    """Waits for processes, and ends them whatever happens; returns their exit codes."""
    try:
        for process in processes:
            process.wait(LIMIT)
        return [process.returncode for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def alone(distribute: str, folder: Path, **more: object) -> dict[str, np.ndarray]:
    code = json.dumps(options(distribute, folder, **more))
    with (folder / f"{distribute}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(RUN), code], env=environment(), stdout=log, stderr=log
        )
        assert finished([process]) == [0], (folder / f"{distribute}.log").read_text()
    return dict(np.load(folder / f"{distribute}0.npz"))


def start_workers(folder: Path, *each: dict[str, object]) -> list[subprocess.Popen]:
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(len(each))]}
    processes = []
    for index, arguments in enumerate(each):
        config = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
        with (folder / f"worker{index}.log").open("wb") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, str(RUN), json.dumps(arguments)],
                    env=environment(TF_CONFIG=config),
                    stdout=log,
                    stderr=log,
                )
            )
    return processes


def together(folder: Path) -> list[dict[str, np.ndarray]]:
    arguments = options("multi_worker", folder)
    codes = finished(start_workers(folder, arguments, arguments))
    logs = "\n".join((folder / f"worker{index}.log").read_text() for index in range(2))
    assert codes == [0, 0], logs
    return [dict(np.load(folder / f"multi_worker{index}.npz")) for index in range(2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def one(folder: Path) -> dict[str, np.ndarray]:
    found = alone("none", folder)
    assert found["losses"].shape == (15,)
    assert found["losses"][-1] < 0.7 * found["losses"][0]
    return found


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, np.ndarray]]:
    return together(folder)


def check_equal(found: dict[str, np.ndarray], one: dict[str, np.ndarray]) -> None:
    np.testing.assert_allclose(found["losses"], one["losses"], rtol=0, atol=1e-4)
    keys = {key for key in one if key.split("/")[0] in ("history", "scored", "others", "weights")}
    assert {"history/val_mean_iou", "scored/iou_2", "others/multi_scale"} <= keys <= set(found)
    assert 0.05 < one["scored/mean_iou"] < 1
    for key in keys - {"history/val_loss", "scored/loss"}:  # see docs/distributed.md
        atol = 2e-3 if "iou" in key or "accuracy" in key or "share" in key else 1e-3
        np.testing.assert_allclose(found[key], one[key], rtol=1e-3, atol=atol, err_msg=key)
    np.testing.assert_allclose(found["predicted"], one["predicted"], rtol=1e-2, atol=1e-2)


@pytest.mark.slow
def test_two_devices_train_as_one(folder, one):
    found = alone("mirrored", folder)
    check_equal(found, one)
    check_split(found["seen"], found["dealt"])


@pytest.mark.slow
def test_two_processes_train_as_one(one, two):
    for found in two:
        check_equal(found, one)
    assert [bool(found["chief"]) for found in two] == [True, False]
    assert [str(found["told"])[:17] for found in two] == ["the folder is ful", "The chief stopped"]
    for key in two[0]:
        if key.split("/")[0] in ("weights", "history", "scored"):
            np.testing.assert_array_equal(two[1][key], two[0][key], err_msg=key)
    check_split(
        np.concatenate([found["seen"] for found in two], 1),
        np.concatenate([found["dealt"] for found in two]),
    )
    np.testing.assert_allclose(two[0]["saved"], two[0]["not_saved"], atol=1e-5)


def check_split(seen: np.ndarray, dealt: np.ndarray) -> None:
    """The batches of `range(24).batch(8)` in two parts; those of 5, dealt out, each once."""
    np.testing.assert_array_equal(seen, np.arange(24).reshape(3, 2, 4))
    np.testing.assert_array_equal(np.sort(dealt), np.arange(24))


@pytest.mark.slow
def test_statistics_that_are_not_synchronised_are_seen(folder, one):
    found = alone("mirrored", folder, plant="batch norm")
    assert np.abs(found["losses"] - one["losses"]).max() > 1e-2


def test_names_of_strategies():
    strategy = distribution.open_strategy("none")
    assert strategy.num_replicas_in_sync == 1
    assert workers.on_chief(strategy, lambda: 3) == 3
    assert workers.on_chief(strategy, lambda: None) == 0
    with pytest.raises(ValueError, match=r"`name` must be one of .* Received: name='all'"):
        distribution.open_strategy("all")


CLUSTER = {"worker": ["a:1", "b:1"]}


@pytest.mark.parametrize(
    "config",
    [
        None,
        "{",
        "[]",
        {"cluster": CLUSTER},
        {"cluster": CLUSTER, "task": {"type": "worker", "index": 2}},
        {"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}},
    ],
)
def test_other_contents_of_tf_config_are_refused(config, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if config is not None:
        monkeypatch.setenv("TF_CONFIG", config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(ValueError, match=r"multi_worker: .*TF_CONFIG must .*\. Received: "):
        distribution.open_strategy("multi_worker")
