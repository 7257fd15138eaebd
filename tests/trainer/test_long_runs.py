"""Runs in processes of their own: killed, interrupted, out of disk, and on two machines."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from trainer.stored_arrays import arrays, assert_same_arrays
from trainer.tiny_run import Start

SCRIPT = Path(__file__).parent / "tiny_run.py"
SECONDS = 300
# Of 3 steps an epoch; the fourth epoch is the second stage.
SHORT = "--epochs 3 --batch-size 4 --crop-size 48 64 --stage2-share 0.3".split()
NETWORK = "model={'aspp_rates': (), 'head_filters': None, 'aspp_filters': 8}"
ALONE = [*SHORT, "--model", "deeplab_v3", "--loss", "cross_entropy", "--set", NETWORK]
# Machines draw dropout for themselves; the norm behind an image pooling would enlarge rounding.
HEAD = {"dropout": 0.0, "aspp_rates": (), "head_filters": None, "aspp_filters": 8}
MACHINES = [*SHORT, "--model", "deeplab_v3", "--recipe", "v3", "--distribute", "multi_worker"]
MACHINES += ["--set", f"model={HEAD}", "clipnorm=1.0"]
FILES = {"model.keras", "last.keras", "saved_model", "metrics.json", "history.csv", "run.lock"}
FILES |= {"predictions.png", "dataset.json", "run.json", "epochs.csv", "report.html"}


def interruptible():
    """A shell's background jobs ignore interrupts, and so does what they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Machine:
    """A program that forks processes; two of them differ in the order of sets, as machines do."""

    def __init__(self):
        command = [sys.executable, str(SCRIPT)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.program = subprocess.Popen(command, **pipes, preexec_fn=interruptible)

    def ask(self, question):
        print(json.dumps(question), file=self.program.stdin, flush=True)
        return json.loads(self.program.stdout.readline())


class Process:
    """What `subprocess.Popen` has, of a process on a machine."""

    def __init__(self, machine, start):
        self.machine, self.status = machine, None
        self.number = machine.ask(start._asdict())

    def poll(self):
        if self.status is None:
            self.status = self.machine.ask(self.number)
        return self.status

    def wait(self, seconds):
        until = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > until:
                raise TimeoutError
            time.sleep(0.05)
        return self.status

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.number, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


@pytest.fixture(scope="module")
def machines():
    both = [Machine(), Machine()]
    yield both
    for each in both:
        each.program.stdin.close()
        assert each.program.wait(SECONDS) == 0


def begin(machine, folder, arguments=ALONE, place="nowhere", **options):
    """Starts the command; its output is in a file, which no process has to wait for."""
    marker = folder.with_suffix(".marker")
    marker.unlink(missing_ok=True)
    log, arguments = folder.with_suffix(".log"), [*arguments, "--output", str(folder)]
    return Process(machine, Start(arguments, str(log), str(marker), place, **options))


def output(folder):
    return folder.with_suffix(".log").read_text()


def end(folder, process, expected=0):
    """Waits for the end of a process and returns its output."""
    try:
        assert process.wait(SECONDS) == expected, output(folder)
    finally:
        process.kill()
    assert "Traceback" not in output(folder)
    return output(folder)


def reach(folder, process):
    """Waits until a process is at its place."""
    until = time.monotonic() + SECONDS
    while not folder.with_suffix(".marker").exists():
        assert process.poll() is None, output(folder)
        assert time.monotonic() < until, output(folder)
        time.sleep(0.05)


def stop(machine, folder, place, how, expected):
    """Runs up to a place and sends a signal there; returns the output."""
    process = begin(machine, folder, place=place)
    try:
        reach(folder, process)
        process.send_signal(how)
    except BaseException:
        process.kill()
        raise
    return end(folder, process, expected)


def scores(folder):
    """The scores of the labels, and the calibration error.

    With oneDNN probabilities differ in the last digits between two processes.
    """
    found = json.loads((folder / "metrics.json").read_text())
    assert sum(part["pixels"] for part in found.pop("reliability")) == found["pixels"]
    return found, found.pop("expected_calibration_error")


def assert_same_end(folder, undisturbed):
    assert (folder / "history.csv").read_text() == (undisturbed / "history.csv").read_text()
    for name in ("last.keras", "model.keras"):
        assert_same_arrays(folder / name, undisturbed / name)
    for name in ("run.json", "predictions.png"):
        assert (folder / name).read_bytes() == (undisturbed / name).read_bytes()
    (found, error), (expected, expected_error) = scores(folder), scores(undisturbed)
    assert found == expected
    assert error == pytest.approx(expected_error, abs=1e-6)
    assert {path.name for path in folder.iterdir()} == FILES


@pytest.fixture(scope="module")
def undisturbed(machines, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    end(folder, begin(machines[0], folder, place="unexported"))
    assert len((folder / "history.csv").read_text().splitlines()) == 1 + 4
    return folder


@pytest.mark.slow
def test_a_run_killed_interrupted_and_out_of_disk_ends_where_an_undisturbed_one_ends(
    undisturbed, machines, tmp_path
):
    """Killed in the first epoch and in the second stage, interrupted in the second epoch.

    In the third no file may grow beyond a part of the training state, so that its last bytes fail.
    """
    folder, machine = tmp_path / "run", machines[1]
    stop(machine, folder, "model:1", signal.SIGKILL, expected=-signal.SIGKILL)
    printed = stop(machine, folder, "step:5", signal.SIGINT, expected=130)
    assert "Interrupted: run the same command again to resume" in printed
    limit = int(0.98 * (folder / "last.keras").stat().st_size)
    full = begin(machine, folder, largest_file=limit)
    assert "error: " in end(folder, full, expected=2)
    stop(machine, folder, "last:3", signal.SIGKILL, expected=-signal.SIGKILL)
    assert not (folder / "metrics.json").exists()
    assert "Resuming from epoch" in end(folder, begin(machine, folder))
    assert_same_end(folder, undisturbed)


def begin_machines(machines, path, places=("nowhere", "nowhere")):
    """Two processes that train together."""
    sockets = [socket.socket() for _ in places]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    tasks = [{"type": "worker", "index": index} for index in range(len(places))]
    configs = [json.dumps({"cluster": {"worker": addresses}, "task": task}) for task in tasks]
    return [
        begin(machine, path / f"{i}", MACHINES, place, environment={"TF_CONFIG": config})
        for i, (machine, place, config) in enumerate(zip(machines, places, configs, strict=True))
    ]


def end_machines(path, processes, expected=0):
    try:
        return [end(path / f"{i}", each, expected) for i, each in enumerate(processes)]
    finally:
        for each in processes:
            each.kill()


@pytest.fixture(scope="module")
def together(machines, tmp_path_factory):
    """The folder of two machines that nothing disturbed."""
    path = tmp_path_factory.mktemp("together")
    chief, other = end_machines(path, begin_machines(machines, path))
    assert "Epoch 1/4" in chief
    assert "Epoch 1/4" not in other
    assert (path / "0" / "saved_model").exists()
    assert not (path / "1").exists()  # the chief alone writes
    return path


@pytest.mark.slow
def test_two_machines_train_as_one(together, machines, tmp_path):
    alone = tmp_path / "run"
    end(alone, begin(machines[0], alone, [*MACHINES, "--distribute", "none"], "unexported"))
    histories = []
    for folder in (together / "0", alone):
        with (folder / "history.csv").open() as file:
            histories.append(list(csv.DictReader(file)))
    for ours, theirs in zip(*histories, strict=True):
        for key in set(ours) - {"val_loss"}:  # see docs/distributed.md
            assert float(ours[key]) == pytest.approx(float(theirs[key]), 1e-3, 2e-3), key
    ours, theirs = arrays(together / "0" / "last.keras"), arrays(alone / "last.keras")
    assert len(ours) > 20
    for place, array in ours.items():
        np.testing.assert_allclose(array, theirs[place], rtol=1e-2, atol=1e-3, err_msg=place)


@pytest.mark.slow
def test_a_machine_that_was_killed(together, machines, tmp_path):
    """In the second stage; the resumed run ends bit for bit where the undisturbed one ended."""
    chief, worker = begin_machines(machines, tmp_path, ("unexported", "step:11"))
    try:
        reach(tmp_path / "1", worker)
        worker.kill()
        # The other cannot go on alone; it ends with an error or is ended with its machine.
        with suppress(TimeoutError):
            assert chief.wait(20) != 0
    finally:
        chief.kill()
        worker.kill()
    printed, _ = end_machines(tmp_path, begin_machines(machines, tmp_path, ("unexported",) * 2))
    assert "Resuming from epoch 3 of 4" in printed
    assert_same_arrays(tmp_path / "0" / "last.keras", together / "0" / "last.keras")
    # An error of the chief ends the others too.
    printed, other = end_machines(tmp_path, begin_machines(machines, tmp_path), expected=2)
    assert "holds a finished run" in printed
    assert "The chief stopped with an error" in other
