from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from keras_deeplab.crf.row_blocks import BLOCK, RowBlocks


@pytest.mark.parametrize("rows", [1, BLOCK, 2 * BLOCK + 5])
def test_a_product_in_blocks_is_that_of_the_whole_matrix(rows):
    random = np.random.default_rng(0)
    dense = random.normal(size=(rows, 9)).astype(np.float32)
    matrix = sparse.csr_array(np.where(dense > 1, dense, 0))
    for shape in ((9,), (9, 2)):
        values = random.normal(size=shape).astype(np.float32)
        np.testing.assert_array_equal(RowBlocks(matrix) @ values, matrix @ values)
