from __future__ import annotations

import gc
import subprocess
import sys

import psutil
import pytest

from keras_deeplab import memory
from keras_deeplab.memory import available_memory, peak_memory, return_free_memory


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_peak_remains_after_the_memory_is_freed():
    block = bytearray(b"x") * (300_000_000 + peak_memory())
    size = psutil.Process().memory_info().rss
    del block
    assert 0.9 * size < peak_memory() < 1.5 * size


def test_the_peak_is_not_that_of_the_process_that_started_this_one():
    block = bytearray(b"x") * 300_000_000
    code = f"import runpy; print(runpy.run_path({memory.__file__!r})['peak_memory']())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert 5e6 < int(found.stdout) < len(block)


def test_a_container_s_limit_counts_without_the_files_that_it_has_cached(tmp_path):
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("5000\n")
    (tmp_path / "memory.stat").write_text("anon 1000\ninactive_file 4000\n")
    assert available_memory(tmp_path) == 4000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(tmp_path) > 2**20


def test_available_memory_is_a_share_of_the_machine():
    assert 0 < available_memory() < 2**50
