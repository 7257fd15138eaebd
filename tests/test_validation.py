"""The checks of arguments."""

from __future__ import annotations

import numpy as np
import pytest

from keras_deeplab import validation

ACCEPTED = [
    (validation.integer, 1, 1),
    (validation.integer, np.int64(3), 3),
    (validation.positive, 0.5, 0.5),
    (validation.non_negative, 0, 0),
    (validation.fraction, 1.0, 1.0),
    (validation.integers, [1, np.uint8(2)], (1, 2)),
    (validation.pair, (3, 4), (3, 4)),
    (validation.pair, np.int64(3), (3, 3)),
    (validation.numbers, [0.5, 1], (0.5, 1)),
]
REFUSED = [
    *((validation.integer, value) for value in (0, 1.0, True, "1", None)),
    *((validation.positive, value) for value in (0, float("nan"), float("inf"), True, "1")),
    *((validation.non_negative, value) for value in (-1e-9, float("nan"), None)),
    *((validation.fraction, value) for value in (-0.1, 1.1, True, float("nan"))),
    *((validation.integers, value) for value in (3, [0], [1.0], "12", None)),
    *((validation.pair, value) for value in (0, 3.0, [3], (3, 4, 5), (0, 3), None)),
    *((validation.numbers, value) for value in (3, ["1"], [float("inf")], None)),
]


@pytest.mark.parametrize("check, value, expected", ACCEPTED)
def test_valid_values_are_returned(check, value, expected):
    assert check("argument", value) == expected


@pytest.mark.parametrize("check, value", REFUSED)
def test_an_error_has_keras_form(check, value):
    with pytest.raises(ValueError, match=r"^`argument` must be .*\. Received: argument="):
        check("argument", value)


def test_the_limits_are_named():
    assert validation.integer("steps", 0, minimum=0) == 0
    with pytest.raises(ValueError, match="an integer of at least 2"):
        validation.integer("num_classes", 1, minimum=2)
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        validation.fraction("dropout", 1.0, below_one=True)


def test_a_choice_suggests_the_closest():
    assert validation.one_of("mode", None, (None, "median")) is None
    with pytest.raises(ValueError, match="Did you mean 'median'"):
        validation.one_of("mode", "medain", (None, "median"))


def test_long_values_are_shortened():
    assert len(str(validation.error("name", "short", "x" * 10_000))) < 400
