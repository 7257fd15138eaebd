"""Products of a sparse matrix on several cores."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from scipy import sparse

BLOCK = 16384  # rows, whose products with some classes stay in the cache of a core


class RowBlocks:
    """A sparse matrix in blocks of rows, whose products are computed by several threads.

    SciPy computes a product on one core, but without the lock of the interpreter. Blocks of columns
    of the values would gain little: most of the time goes into reading places in memory.
    """

    def __init__(self, matrix: sparse.csr_array) -> None:
        self.shape = matrix.shape
        self._starts = range(0, self.shape[0], BLOCK)
        self._blocks = [matrix[start : start + BLOCK] for start in self._starts]

    def __matmul__(self, values: np.ndarray) -> np.ndarray:
        product = np.empty((self.shape[0], *values.shape[1:]), np.float32)

        def write(start: int, block: sparse.csr_array) -> None:
            product[start : start + BLOCK] = block @ values

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(write, self._starts, self._blocks))
        return product
