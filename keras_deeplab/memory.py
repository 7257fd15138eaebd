"""Memory that is no longer used, given back to the system."""

from __future__ import annotations

import ctypes
import gc
import sys


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
