from __future__ import annotations

import numpy as np

from keras_deeplab.data.diagnostics.structure import WIDTHS, Structure, structure


def test_measures_of_a_drawn_map():
    values = np.zeros((20, 40), np.uint8)
    values[:, 10:13] = 5  # a line of 3 pixels
    values[2:18, 20:36] = 9  # a square of 16
    measured = structure(values)
    assert measured.changes == 2 * 20 + 2 * 16 + 2 * 16
    assert measured.touching[[0, 5, 9]].tolist() == [104, 40, 64]
    assert measured.between.sum() == 0
    assert measured.widths.sum(1)[[0, 5, 9]].tolist() == [800 - 60 - 256, 60, 256]
    assert measured.narrower_than(4)[5] == 1
    assert measured.narrower_than(16)[9] == 0
    assert measured.narrower_than(32)[9] == 1
    assert measured.widths[9, WIDTHS.index(32)] == 256
    both = Structure()
    both += measured
    both += measured
    assert both.changes == 2 * measured.changes
    np.testing.assert_array_equal(both.widths, 2 * measured.widths)


def test_values_in_between_against_loops():
    values = np.random.default_rng(0).integers(0, 4, (9, 11)).astype(np.uint8)
    expected = np.zeros(256, int)
    for y in range(9):
        for x in range(11):
            sides = [(values[y, x - 1], values[y, x + 1])] if 0 < x < 10 else []
            sides += [(values[y - 1, x], values[y + 1, x])] if 0 < y < 8 else []
            if any(min(pair) < values[y, x] < max(pair) for pair in sides):
                expected[values[y, x]] += 1
    np.testing.assert_array_equal(structure(values).between, expected)
    assert expected.sum() > 10
