"""Plain references of the dense CRF: dense kernels and a dictionary as the lattice."""

from __future__ import annotations

from collections import defaultdict

import numpy as np


def positions(height: int, width: int) -> np.ndarray:
    """The x and y of each pixel."""
    return np.stack(np.mgrid[:height, :width][::-1], -1).reshape(-1, 2).astype(float)


def normalised(kernel: np.ndarray) -> np.ndarray:
    norm = 1 / np.sqrt(kernel.sum(1))
    return norm[:, None] * kernel * norm


def gaussian(features: np.ndarray) -> np.ndarray:
    """The normalised Gaussian between all pairs of points."""
    squares = ((features[:, None] - features) ** 2).sum(-1)
    return normalised(np.exp(-squares / 2))


def corners_of(point: np.ndarray) -> list[tuple[tuple[int, ...], float]]:
    """The corners of the simplex around a point of the hyperplane, with barycentric weights."""
    size = len(point)
    closest = np.rint(point / size) * size
    # Back to the hyperplane where the rounding was largest. Of equals the first has a low rank.
    order = np.argsort(closest - point, kind="stable")
    excess = round(closest.sum() / size)
    closest[order[size - excess :]] -= size
    closest[order[: max(0, -excess)]] += size
    order = np.argsort(closest - point, kind="stable")
    offset = (point - closest)[order]
    found = []
    for remainder in range(size):
        corner = closest + remainder
        corner[order[size - remainder :]] -= size
        if remainder:
            weight = (offset[size - remainder - 1] - offset[size - remainder]) / size
        else:
            weight = 1 - (offset[0] - offset[-1]) / size
        found.append((tuple(corner.astype(int)), weight))
    return found


def lattice(features: np.ndarray) -> np.ndarray:
    """The normalised kernel of the permutohedral lattice between all pairs of points."""
    points, dimensions = features.shape
    size = dimensions + 1
    elevated = np.zeros((points, size))
    for index in range(dimensions):
        scaled = features[:, index] * size * np.sqrt(2 / 3 / ((index + 1) * (index + 2)))
        elevated[:, : index + 1] += scaled[:, None]
        elevated[:, index + 1] -= (index + 1) * scaled
    corners = [corners_of(point) for point in elevated]
    splat = defaultdict(lambda: np.zeros(points))
    for number, found in enumerate(corners):
        for corner, weight in found:
            splat[corner][number] += weight
    values = dict(splat)
    for axis in range(size):
        step = -np.ones(size, int)
        step[axis] = dimensions
        none = np.zeros(points)
        values = {
            corner: value
            + 0.5 * values.get(tuple(np.array(corner) + step), none)
            + 0.5 * values.get(tuple(np.array(corner) - step), none)
            for corner, value in values.items()
        }
    rows = [sum(weight * values[corner] for corner, weight in found) for found in corners]
    return normalised(np.array(rows))


def mean_field(probabilities: np.ndarray, kernel: np.ndarray, steps: int) -> np.ndarray:
    """The marginals with the weighted sum of the kernels, each message over all pairs of pixels."""
    unary = -np.log(np.clip(probabilities, 1e-5, 1).astype(float))
    unary = unary.reshape(-1, unary.shape[-1])
    marginals = np.exp(-unary) / np.exp(-unary).sum(1, keepdims=True)
    for _ in range(steps):
        energies = unary - kernel @ marginals
        marginals = np.exp(energies.min(1, keepdims=True) - energies)
        marginals /= marginals.sum(1, keepdims=True)
    return marginals.reshape(probabilities.shape)
