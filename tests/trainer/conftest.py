"""Small runs of the commands, in the process of the test."""

from __future__ import annotations

import pytest
from trainer import tiny_run


@pytest.fixture(scope="module")
def small():
    """A few images and a small network with batch norm."""
    with pytest.MonkeyPatch.context() as patch:
        tiny_run.small(patch)
        yield
