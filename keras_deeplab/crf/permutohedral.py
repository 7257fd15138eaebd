"""Gaussian filtering of points in many dimensions on the permutohedral lattice."""

from __future__ import annotations

import operator
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from scipy import sparse

from keras_deeplab.crf.row_blocks import RowBlocks


class PermutohedralLattice:
    """An approximate Gaussian filter of unit standard deviation between points of any dimension.

    The value of a point is distributed to the vertices of the simplex around it (splat), blurred
    along each direction of the lattice with the weights 1/2, 1 and 1/2, and interpolated (slice).
    As in the authors' code, the blur leaves out vertices without points. The resulting kernel k is
    normalised symmetrically, to `k(i, j) / sqrt(sum k(i, .) * sum k(j, .))`.

    Args:
        features: Points `(points, dimensions)`, float, in units of the standard deviation.

    Reference:
        - Adams, Baek and Davis, *Fast High-Dimensional Filtering Using the Permutohedral Lattice*,
          Eurographics 2010, section 3
    """

    def __init__(self, features: np.ndarray) -> None:
        points, dimensions = features.shape
        corners = dimensions + 1  # of a simplex
        vertex, offset = _closest_vertex(features)
        # Ties are frequent, for black pixels. They are broken as in the authors' code.
        order = np.argsort(-offset, 1, kind="stable")[:, ::-1]
        offset = np.take_along_axis(offset, order, 1)
        barycentric = np.diff(offset, axis=1, prepend=offset[:, -1:] - 1)
        # A vertex is known by a linear hash of its coordinates modulo 2^64, so that the key of a
        # neighbour is the key plus a constant. The probability that two of 10^6 vertices share a
        # key is 3e-8.
        factors = np.random.default_rng(0).integers(0, 2**64, corners, np.uint64)
        total = np.sum(factors)
        # Corner k is k above corner 0, and one whole simplex less along the k smallest offsets.
        lower = np.cumsum(factors[order], 1) - factors[order]
        keys = np.uint64(corners) * ((vertex.astype(np.uint64) @ factors)[:, None] - lower)
        keys += np.arange(corners, dtype=np.uint64) * total
        keys, first, corner = np.unique(keys, return_index=True, return_inverse=True)
        # Vertices in the order of the points, so that close ones are close in memory.
        number = np.empty(len(keys), np.int32)
        number[np.argsort(first)] = np.arange(len(keys), dtype=np.int32)
        rows = np.arange(0, points * corners + 1, corners, dtype=np.int32)
        interpolation = sparse.csr_array(
            (barycentric.astype(np.float32).ravel(), number[corner].ravel(), rows),
            (points, len(keys)),
        )
        steps = np.uint64(corners) * factors - total
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            blurs = list(pool.map(lambda step: _blur(keys, step, number), steps))
            # Two directions at once: fewer passes over the values, about as many additions.
            pairs = pool.map(operator.matmul, blurs[1::2], blurs[::2])
            blurs = [*pairs, *blurs[corners - corners % 2 :]]
        sums = interpolation.sum(0)
        for blur in blurs:
            sums = blur @ sums
        interpolation = sparse.diags_array(1 / np.sqrt(interpolation @ sums)) @ interpolation
        self._products = [RowBlocks(m) for m in (interpolation.T.tocsr(), *blurs, interpolation)]

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Filters values `(points,)` or `(points, channels)`, float32."""
        for matrix in self._products:
            values = matrix @ values
        return values


def _closest_vertex(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the corner 0 of the simplex around each point, and the offset of the point to it.

    Both are `(points, dimensions + 1)` coordinates on the hyperplane where these sum to 0, in units
    of `dimensions + 1`, in which corners 0 are integers.
    """
    dimensions = features.shape[1]
    # A basis of the hyperplane (page 5), scaled for a blur of unit standard deviation (page 6).
    basis = np.tri(dimensions, dimensions + 1)
    basis[range(dimensions), range(1, dimensions + 1)] = -np.arange(1, dimensions + 1)
    basis *= np.sqrt(2 / 3) / np.linalg.norm(basis, axis=1, keepdims=True)
    place = features @ basis.astype(features.dtype)
    vertex = np.rint(place)
    # Where the rounded coordinates do not sum to 0, those that were rounded most are moved back.
    excess = np.rint(vertex.sum(1, keepdims=True)).astype(int)
    rank = np.argsort(np.argsort(vertex - place, 1, kind="stable"), 1) + excess
    vertex += rank < 0
    vertex -= rank > dimensions
    return vertex.astype(np.int64), place - vertex


def _blur(keys: np.ndarray, step: np.uint64, number: np.ndarray) -> sparse.csr_array:
    """Returns the matrix of a blur along the direction in which keys grow by a step."""
    size = len(keys)
    neighbour_keys = keys + step
    at = np.searchsorted(keys, neighbour_keys)
    at[at == size] = 0
    exists = keys[at] == neighbour_keys
    half = np.full(np.count_nonzero(exists), 0.5, np.float32)
    neighbour = sparse.csr_array((half, (number[exists], number[at[exists]])), (size, size))
    return (sparse.eye_array(size, dtype=np.float32) + neighbour + neighbour.T).tocsr()
