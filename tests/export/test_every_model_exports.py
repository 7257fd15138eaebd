"""The models of the README's table, and MultiScale, in each format and in OpenVINO.

The backbones have fewer of their repeated units, and those whose number of channels is fixed half
of them in the first network, whose memory is bounded, and a quarter in the others. Without the
cascade, which rounds by 0.005 with random weights.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from export import every_model

TESTS = Path(every_model.__file__).parents[1]


@pytest.mark.slow
def test_every_model_exports(tmp_path):
    """At odd sizes, in a process of their own."""
    done = subprocess.run(
        [sys.executable, every_model.__file__, tmp_path],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (TESTS, TESTS.parent)))},
    )
    assert done.returncode == 0, done.stderr
