"""Runs on several replicas and in several processes against the same run in one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from trainer.distributed_run import results
from trainer.test_two_machines import free_ports

from keras_deeplab import distribution
from keras_deeplab.trainer import workers

LIMIT = 540  # seconds for a process, on a machine with much else to do


@pytest.fixture(scope="module")
def one() -> dict[str, np.ndarray]:
    found = results(tf.distribute.get_strategy())
    assert found["losses"].shape == (15,)
    assert found["losses"][-1] < 0.7 * found["losses"][0]
    return found


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, np.ndarray]]:
    """The results of two processes."""
    folder = tmp_path_factory.mktemp("workers")
    tests = Path(__file__).resolve().parents[1]
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(2)]}
    paths = os.pathsep.join([str(tests), str(tests.parent)])
    processes = []
    for index in range(2):
        config = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
        more = {"PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": "-1", "TF_CONFIG": config}
        with (folder / f"{index}.log").open("wb") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "trainer.distributed_run", str(folder)],
                    env={**os.environ, **more},
                    stdout=log,
                    stderr=log,
                )
            )
    try:
        codes = [process.wait(LIMIT) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    logs = "\n".join((folder / f"{index}.log").read_text() for index in range(2))
    assert codes == [0, 0], logs
    return [dict(np.load(folder / f"{index}.npz")) for index in range(2)]


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
def test_two_devices_train_as_one(mirrored, one):
    found = results(mirrored)
    check_equal(found, one)
    check_split(found["seen"], found["dealt"])


@pytest.mark.slow
def test_statistics_that_are_not_synchronised_differ(mirrored, one):
    found = results(mirrored, synchronized=False)
    assert np.abs(found["losses"] - one["losses"]).max() > 1e-2


@pytest.mark.slow
def test_two_processes_train_as_one(one, two):
    for found in two:
        check_equal(found, one)
    assert [bool(found["chief"]) for found in two] == [True, False]
    assert [str(found["error"])[:17] for found in two] == ["the folder is ful", "The chief stopped"]
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


def test_names_of_strategies():
    strategy = distribution.open_strategy("none")
    assert strategy.num_replicas_in_sync == 1
    assert distribution.open_strategy("mirrored").num_replicas_in_sync == 2
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
