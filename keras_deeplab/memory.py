"""Memory of this process: what is free for it, its peak, and unused memory given back."""

from __future__ import annotations

import ctypes
import gc
import re
import sys
from pathlib import Path

import psutil

try:
    import resource
except ImportError:  # on Windows
    resource = None


def available_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Returns the bytes that this process can still get, also under a container's limit."""
    free = psutil.virtual_memory().available
    old = cgroup / "memory"  # of the first version
    for folder, limit, used, cached in (
        (cgroup, "memory.max", "memory.current", "inactive_file"),
        (old, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            taken = int((folder / used).read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            taken -= int(stat.get(cached, 0))  # files that the system drops when it needs memory
            free = min(free, int((folder / limit).read_text()) - taken)
        except (OSError, ValueError):  # none, or "max"
            continue
    return max(free, 0)


def return_free_memory() -> None:
    """Gives unused memory back to the system.

    TensorFlow and the converters copy a graph with its weights several times, hold the copies in
    cycles of objects, and the C library (glibc) keeps what is freed: a process would keep one or
    more gigabytes for each export of a ResNet.
    """
    gc.collect()
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def peak_memory() -> int:
    """Returns the largest resident memory of this process so far, in bytes."""
    if resource is None:
        return psutil.Process().memory_info().peak_wset
    status = Path("/proc/self/status")  # in `ru_maxrss` Linux counts the process that started it
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return 1024 * int(found[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
