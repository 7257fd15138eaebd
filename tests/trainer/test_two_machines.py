"""The command on two machines, here two processes, trains as on one."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from trainer.stored_arrays import assert_same_arrays

SCRIPT = Path(__file__).parent / "tiny_run.py"
SHORT = ["--epochs", "3", "--batch-size", "4", "--crop-size", "48", "64"]
SHORT += ["--stage2-share", "0.3"]
# Machines draw dropout for themselves, Lovasz' loss is of each one's part of the batch, Adam makes
# steps of full length of gradients that are hardly more than rounding, and every norm behind the
# pooling's makes more of it.
SHORT += ["--loss", "cross_entropy", "--learning-rate", "0.02"]
HEAD = {"dropout": 0.0, "decoder_filters": 32, "detail_layer": None}
SHORT += ["--set", "optimizer=sgd", f"model={HEAD}"]
SECONDS = 300


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def begin(folder, place="nowhere", config=None):
    """Starts the command; its output is in a file, which no process has to wait for."""
    environment = {**os.environ, **({"TF_CONFIG": json.dumps(config)} if config else {})}
    arguments = [*SHORT, *(["--distribute", "multi_worker"] if config else [])]
    marker = folder.with_suffix(".marker")
    command = [sys.executable, str(SCRIPT), place, str(marker), *arguments]
    with folder.with_suffix(".log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--output", str(folder)],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return process, marker


@contextmanager
def machines(tmp_path, places=("nowhere", "nowhere")):
    """Two processes that train together."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    started = []
    try:
        for index, place in enumerate(places):
            task = {"type": "worker", "index": index}
            config = {"cluster": {"worker": addresses}, "task": task}
            started.append(begin(tmp_path / f"machine{index}", place, config))
        yield started
    finally:
        for process, _ in started:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def log_of(folder):
    return folder.with_suffix(".log").read_text()


def history(folder):
    with (folder / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {key: np.array([float(row[key]) for row in rows]) for key in rows[0]}


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The folder of two machines that nothing disturbed."""
    path = tmp_path_factory.mktemp("together")
    with machines(path) as started:
        for index, (process, _) in enumerate(started):
            assert process.wait(SECONDS) == 0, log_of(path / f"machine{index}")
    return path


@pytest.mark.slow
def test_two_machines_train_as_one(together, tmp_path):
    """Over 12 steps; rounding grows on the way, most where a norm has the four values of a pooling.

    The losses of single steps are held to 1e-4 in test_distributed_runs.py.
    """
    alone = tmp_path / "run"
    process, _ = begin(alone)
    assert process.wait(SECONDS) == 0, log_of(alone)
    ours, theirs = history(together / "machine0"), history(alone)
    np.testing.assert_array_equal(ours["epoch"], [0, 1, 2, 3])
    assert ours["loss"][0] == pytest.approx(theirs["loss"][0], rel=1e-4)
    for key in ("loss", "val_loss"):
        np.testing.assert_allclose(ours[key], theirs[key], rtol=2e-2, err_msg=key)
    for key in ("val_mean_iou", "val_pixel_accuracy"):  # a pixel on the edge moves them
        np.testing.assert_allclose(ours[key], theirs[key], atol=8e-2, err_msg=key)
    assert (together / "machine0" / "saved_model").exists()
    assert not (together / "machine1").exists()  # the chief alone writes
    assert "Epoch 1/4" in log_of(together / "machine0")
    assert "Epoch 1/4" not in log_of(together / "machine1")


@pytest.mark.slow
def test_a_machine_that_was_killed(together, tmp_path):
    """In the second stage; the resumed run ends bit for bit where the undisturbed one ended."""
    with machines(tmp_path, ("nowhere", "step:11")) as started:
        (chief, _), (worker, marker) = started
        until = time.monotonic() + SECONDS
        while not marker.exists():
            assert worker.poll() is None, log_of(tmp_path / "machine1")
            assert time.monotonic() < until
            time.sleep(0.05)
        worker.kill()
        # The other cannot go on alone; it ends with an error or is ended with its machine.
        with suppress(subprocess.TimeoutExpired):
            assert chief.wait(20) != 0
    marker.unlink()
    with machines(tmp_path) as started:
        for index, (process, _) in enumerate(started):
            assert process.wait(SECONDS) == 0, log_of(tmp_path / f"machine{index}")
    assert "Resuming from epoch" in log_of(tmp_path / "machine0")
    assert (tmp_path / "machine0" / "saved_model").exists()
    assert_same_arrays(*(path / "machine0" / "last.keras" for path in (tmp_path, together)))
