"""Memory of this process: its peak, and unused memory given back to the system."""

from __future__ import annotations

import ctypes
import gc
import sys

import psutil

try:
    import resource
except ImportError:  # on Windows
    resource = None


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
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
