"""Runs that are killed, interrupted or out of disk end where an undisturbed one ends."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from trainer.stored_arrays import assert_same_arrays

SCRIPT = Path(__file__).parent / "tiny_run.py"
SHORT = ["--epochs", "3", "--batch-size", "4", "--crop-size", "48", "64"]
SHORT += ["--stage2-share", "0.3"]
SECONDS = 240
FILES = {"model.keras", "last.keras", "saved_model", "metrics.json", "history.csv"}
FILES |= {"predictions.png", "dataset.json", "run.json"}


def interruptible():
    """A shell's background jobs ignore interrupts, and so does what they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def begin(folder, place="nowhere", preexec=interruptible):
    """Starts the command in a process of its own."""
    marker = folder.with_suffix(".marker")
    command = [sys.executable, str(SCRIPT), place, str(marker), *SHORT, "--output", str(folder)]
    process = subprocess.Popen(
        command,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=preexec,
    )
    return process, marker


def finish(folder):
    process, _ = begin(folder)
    try:
        output, _ = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    assert process.returncode == 0, output
    return output


def stop(folder, place, how=signal.SIGKILL):
    """Runs up to a place and sends a signal there; returns the exit status and the output."""
    process, marker = begin(folder, place)
    try:
        until = time.monotonic() + SECONDS
        while not marker.exists():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < until, f"{place} was not reached"
            time.sleep(0.05)
        process.send_signal(how)
        output, _ = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    marker.unlink()
    return process.returncode, output


def assert_same_end(folder, undisturbed):
    assert (folder / "history.csv").read_text() == (undisturbed / "history.csv").read_text()
    for name in ("last.keras", "model.keras"):
        assert_same_arrays(folder / name, undisturbed / name)
    for name in ("metrics.json", "run.json", "predictions.png"):
        assert (folder / name).read_bytes() == (undisturbed / name).read_bytes()
    assert {path.name for path in folder.iterdir()} == FILES


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    finish(folder)
    assert len((folder / "history.csv").read_text().splitlines()) == 1 + 4
    return folder


# Of 3 steps an epoch: in the first, in the second, and in the stage at output stride 8.
@pytest.mark.slow
@pytest.mark.parametrize(
    "place",
    ["step:2", "model:1", "best:1", "last:1", "model:2", "step:11", "model:4", "last:4"],
)
def test_a_killed_run_ends_where_an_undisturbed_one_ends(place, undisturbed, tmp_path):
    folder = tmp_path / "run"
    status, _ = stop(folder, place)
    assert status == -signal.SIGKILL
    assert not (folder / "metrics.json").exists()
    said = finish(folder)
    assert ("Resuming from epoch" in said) == (
        place not in ("step:2", "model:1", "best:1", "last:1")
    )
    assert_same_end(folder, undisturbed)


@pytest.mark.slow
def test_killed_twice(undisturbed, tmp_path):
    folder = tmp_path / "run"
    stop(folder, "last:2")
    stop(folder, "step:4")
    finish(folder)
    assert_same_end(folder, undisturbed)


@pytest.mark.slow
def test_an_interrupt_says_how_to_go_on(undisturbed, tmp_path):
    folder = tmp_path / "run"
    status, said = stop(folder, "step:5", signal.SIGINT)
    assert status == 130
    assert "Interrupted: run the same command again to resume" in said
    assert "Traceback" not in said
    finish(folder)
    assert_same_end(folder, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.5, 0.98])
def test_a_full_disk_loses_nothing(share, undisturbed, tmp_path):
    """No file may grow beyond a part of the training state, so that writing it fails half way."""
    folder = tmp_path / "run"
    stop(folder, "step:5")  # after an epoch that was kept
    limit = int(share * (folder / "last.keras").stat().st_size)

    def full():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # an error in place of the process's end
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    process, _ = begin(folder, preexec=full)
    try:
        said, _ = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    assert process.returncode == 2, said
    assert "error: " in said
    assert "Traceback" not in said
    finish(folder)
    assert_same_end(folder, undisturbed)
