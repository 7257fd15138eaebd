"""The models of the README's table, and MultiScale, in each format and in OpenVINO.

The ResNets and Xception have fewer of their repeated units, and all but one network of a group of
its own, whose memory is bounded, fewer channels. Without the cascade, which takes 12 GB and rounds
by 0.005 with random weights.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from export import every_model

TESTS = Path(every_model.__file__).parents[1]


def test_each_model_is_in_one_group():
    grouped = [name for names in every_model.GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(every_model.MODELS)


@pytest.mark.slow
@pytest.mark.parametrize("group", every_model.GROUPS)
def test_every_model_exports(group, tmp_path):
    """At odd sizes, in a process for each group."""
    done = subprocess.run(
        [sys.executable, every_model.__file__, group, tmp_path],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (TESTS, TESTS.parent)))},
    )
    assert done.returncode == 0, done.stderr
