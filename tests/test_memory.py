from __future__ import annotations

import subprocess
import sys

import pytest

from keras_deeplab import memory
from keras_deeplab.memory import available_memory


def printed_by(program: str) -> list[int]:
    """What a program of its own prints: other tests leave memory behind in this process."""
    names = f"import gc, psutil, runpy; globals().update(runpy.run_path({memory.__file__!r}))\n"
    command = [sys.executable, "-c", names + program]
    return [int(line) for line in subprocess.check_output(command).split()]


@pytest.mark.skipif(
    not sys.platform.startswith("linux"),
    reason="requires glibc, which gives memory back on request",
)
def test_free_memory_returns_to_the_system():
    """What is only in a cycle of objects, in blocks that glibc would keep."""
    before, deleted, returned = printed_by("""
def resident():
    print(psutil.Process().memory_info().rss)

gc.disable()
cycle = [b"x" * 50_000 for _ in range(4_000)]
kept = b"y" * 50_000  # above them, so that the heap cannot shrink by itself
cycle.append(cycle)
resident()
del cycle
resident()
return_free_memory()
resident()
""")
    assert before - deleted < 20_000_000
    assert before - returned > 150_000_000


def test_the_peak_remains_after_the_memory_is_freed():
    size, peak = printed_by("""
block = bytearray(b"x") * 300_000_000
print(psutil.Process().memory_info().rss)
del block
print(peak_memory())
""")
    assert size > 300_000_000
    assert 0.9 * size < peak < 1.5 * size


def test_the_peak_is_not_that_of_the_process_that_started_this_one():
    block = bytearray(b"x") * 300_000_000
    (peak,) = printed_by("print(peak_memory())")
    assert 5e6 < peak < len(block)


def test_a_container_s_limit_counts_without_the_files_that_it_has_cached(tmp_path):
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("5000\n")
    (tmp_path / "memory.stat").write_text("anon 1000\ninactive_file 4000\n")
    assert available_memory(tmp_path) == 4000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(tmp_path) > 2**20


def test_available_memory_is_a_share_of_the_machine():
    assert 0 < available_memory() < 2**50
