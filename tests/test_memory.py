from __future__ import annotations

import gc
import sys

import psutil
import pytest

from keras_deeplab.memory import peak_memory, return_free_memory


@pytest.mark.skipif(
    not sys.platform.startswith("linux"),
    reason="requires glibc, which gives memory back on request",
)
def test_free_memory_returns_to_the_system():
    """What is only in a cycle of objects, in blocks that glibc would keep."""
    gc.disable()
    try:
        cycle = [b"x" * 50_000 for _ in range(4_000)]
        kept = b"y" * 50_000  # above them, so that the heap cannot shrink by itself
        cycle.append(cycle)
        process = psutil.Process()
        before = process.memory_info().rss
        del cycle
        assert before - process.memory_info().rss < 20_000_000
        return_free_memory()
        assert before - process.memory_info().rss > 150_000_000
    finally:
        gc.enable()
    assert len(kept) == 50_000


def test_the_peak_remains_after_the_memory_is_freed():
    block = bytearray(b"x") * (300_000_000 + peak_memory())
    size = psutil.Process().memory_info().rss
    del block
    assert 0.9 * size < peak_memory() < 1.5 * size
