"""The lattice against a plain one, and against the Gaussian that it approximates."""

from __future__ import annotations

import numpy as np
import pytest
from crf_references import gaussian, lattice

from keras_deeplab.crf.permutohedral import PermutohedralLattice


def matrix_of(features):
    """The matrix of the filter, and the filter."""
    made = PermutohedralLattice(features.astype(np.float32))
    return made(np.eye(len(features), dtype=np.float32)), made


@pytest.mark.parametrize("dimensions", [1, 2, 3, 5, 6])
def test_the_filter_is_that_of_a_plain_lattice(dimensions):
    random = np.random.default_rng(dimensions)
    features = random.normal(0, 2, (150, dimensions))
    matrix, made = matrix_of(features)
    np.testing.assert_allclose(matrix, lattice(features), atol=2e-6)
    values = random.random((150, 4), np.float32)
    np.testing.assert_allclose(made(values), matrix @ values, atol=1e-5)


def test_ties_and_points_at_one_place():
    """Black pixels lie on the border of several simplices."""
    features = np.zeros((40, 5))
    features[:, 0] = np.arange(40) // 2 / 4
    features[30:, 2:] = 3.25
    np.testing.assert_allclose(matrix_of(features)[0], lattice(features), atol=2e-6)


@pytest.mark.parametrize("dimensions, difference", [(1, 0.06), (2, 0.14), (5, 0.3)])
def test_the_kernel_is_close_to_a_gaussian(dimensions, difference):
    features = np.random.default_rng(0).uniform(0, 3, (400, dimensions))
    matrix, exact = matrix_of(features)[0], gaussian(features)
    assert np.abs(matrix - exact).sum() < difference * exact.sum()
    # Narrower and wider ones are further away.
    for sigma in (0.7, 1.4):
        other = gaussian(features / sigma)
        assert np.abs(matrix - other).sum() > np.abs(matrix - exact).sum()


def test_normalisation_is_symmetric():
    """It makes the square roots of the sums of rows an eigenvector of the value 1.

    Barycentric coordinates sum to 1 before it.
    """
    features = np.random.default_rng(0).uniform(0, 4, (300, 3))
    _, made = matrix_of(features)
    interpolation = made._products[-1]
    root = 1 / (interpolation @ np.ones(interpolation.shape[1], np.float32))
    np.testing.assert_allclose(made(root.astype(np.float32)), root, rtol=1e-5)
    assert root.std() > 0.1 * root.mean()
