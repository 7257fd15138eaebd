"""The models of the README's table, and MultiScale, in each format and in OpenVINO.

The ResNets and Xception have fewer of their repeated units, U-Net and V2 on VGG16 fewer filters; V1
is of full size. Without the cascade, which takes 12 GB and rounds by 0.005 with random
weights.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from export import one_model

TESTS = Path(one_model.__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", one_model.MODELS)
def test_every_model_exports(name, tmp_path):
    """At odd sizes, in a process of its own."""
    done = subprocess.run(
        [sys.executable, one_model.__file__, name, tmp_path],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (TESTS, TESTS.parent)))},
    )
    assert done.returncode == 0, done.stderr
