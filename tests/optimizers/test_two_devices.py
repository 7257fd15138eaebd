from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("which, scale", [("sgd", "unscaled"), ("adamw", "scaled")])
def test_two_replicas_end_where_one_does(which, scale):
    """SGD, and AdamW with a moving average and scaled loss; both with clipped gradients.

    Without accumulated gradients, with which Keras' own optimizers fail under MirroredStrategy too.
    """
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    done = subprocess.run(
        [sys.executable, "-m", "optimizers.two_devices", which, scale],
        env={**os.environ, "PYTHONPATH": paths, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    replicas, moved, apart = map(float, done.stdout.split("\n")[-2].split())
    assert replicas == 2
    assert moved > 5e-3
    assert apart < 1e-5
