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


def finish(folder, expected=0, preexec=interruptible):
    process, _ = begin(folder, preexec=preexec)
    try:
        output, _ = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    assert process.returncode == expected, output
    assert "Traceback" not in output
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


# Of 3 steps an epoch. In the first epoch nothing is stored to resume from; the second chain ends
# in the stage at output stride 8.
@pytest.mark.slow
@pytest.mark.parametrize(
    "places",
    [
        ("step:2", "model:1", "best:1", "last:1", "last:2"),
        ("model:2", "step:8", "model:1", "last:1"),
    ],
    ids=["first epochs", "second stage"],
)
def test_a_run_killed_again_and_again_ends_where_an_undisturbed_one_ends(
    places, undisturbed, tmp_path
):
    folder = tmp_path / "run"
    for place in places:
        status, _ = stop(folder, place)
        assert status == -signal.SIGKILL
        assert not (folder / "metrics.json").exists()
    assert "Resuming from epoch" in finish(folder)
    assert_same_end(folder, undisturbed)


@pytest.mark.slow
def test_an_interrupt_and_a_full_disk_lose_nothing(undisturbed, tmp_path):
    """No file may grow beyond a part of the training state, so that its last bytes fail."""
    folder = tmp_path / "run"
    status, output = stop(folder, "step:5", signal.SIGINT)
    assert status == 130
    assert "Interrupted: run the same command again to resume" in output
    assert "Traceback" not in output
    limit = int(0.98 * (folder / "last.keras").stat().st_size)

    def full():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # an error in place of the process's end
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    assert "error: " in finish(folder, expected=2, preexec=full)
    finish(folder)
    assert_same_end(folder, undisturbed)
