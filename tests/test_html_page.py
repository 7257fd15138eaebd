"""Line charts: the places of points and ticks, what is left out, and the legend."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from test_audit_page import read

from keras_deeplab.html_page import (
    BOTTOM,
    CHART,
    LEFT,
    LINES,
    RIGHT,
    TOP,
    _ticks,
    line_chart,
    table,
)

WIDTH, HEIGHT = CHART[0] - LEFT - RIGHT, CHART[1] - TOP - BOTTOM


def lines(page):
    """The points of each polyline."""
    found = [attrs["points"] for tag, attrs in read(page)[1] if tag == "polyline"]
    return [np.array([p.split(",") for p in points.split()], float) for points in found]


def test_points_are_at_their_places():
    chart = line_chart("a", {"one": [(0, 0.0), (5, 1.0), (10, 0.5)]})
    (points,) = lines(chart)
    expected = [
        (LEFT, CHART[1] - BOTTOM),
        (LEFT + WIDTH / 2, TOP),
        (LEFT + WIDTH, TOP + HEIGHT / 2),
    ]
    np.testing.assert_allclose(points, expected, atol=0.06)
    circles = [attrs for tag, attrs in read(chart)[1] if tag == "circle"]
    np.testing.assert_allclose([[float(c["cx"]), float(c["cy"])] for c in circles], points)
    assert [text for text in read(chart)[0] if ":" in text] == [
        "one, epoch 0: 0",
        "one, epoch 5: 1",
        "one, epoch 10: 0.5",
    ]


def test_the_numbers_of_the_axes_are_at_their_places():
    chart = line_chart("a", {"one": [(1, 0.31), (9, 0.78)]})
    (points,) = lines(chart)
    texts = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)">([\d.]+)<', chart)
    across = {float(text): float(x) for x, _, anchor, text in texts if anchor == "middle"}
    up = {float(text): float(y) - 4 for _, y, anchor, text in texts if anchor == "end"}
    assert list(up) == [0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    assert list(across) == [2, 4, 6, 8]
    assert points[0, 0] == LEFT
    assert points[1, 0] == LEFT + WIDTH
    for (epoch, x), (start, left) in zip(list(across.items())[1:], across.items(), strict=False):
        assert (x - left) / (epoch - start) == pytest.approx(WIDTH / 8, abs=0.1)
    assert across[2] == pytest.approx(LEFT + WIDTH / 8, abs=0.1)
    for (_, y), value in zip(points, (0.31, 0.78), strict=True):
        assert y == pytest.approx(np.interp(value, list(up), list(up.values())), abs=0.1)


def test_values_that_are_not_finite_are_left_out():
    curves = {"a": [(1, 0.2), (2, math.nan), (3, 0.4), (4, math.inf)], "b": [(1, math.nan)]}
    chart = line_chart("a", curves)
    (points,) = lines(chart)
    assert len(points) == 2
    assert "b" not in " ".join(read(chart)[0]).split()
    assert "nan" not in chart
    assert line_chart("a", {"b": [(1, math.nan)], "c": []}) == ""


def test_values_larger_than_any_float32_are_left_out():
    largest = float(np.finfo(np.float32).max)
    values = enumerate([1e308, largest, -largest, -1e308])
    (points,) = lines(line_chart("a", {"one": list(values)}))
    assert len(points) == 2
    assert np.isfinite(points).all()


def test_many_curves_are_told_apart_and_their_names_are_text():
    curves = {f"<b>{number}": [(1, number), (2, 3)] for number in range(8)}
    found, tags = read(line_chart("<i>&", curves))
    drawn = [(a["stroke"], a.get("stroke-dasharray")) for tag, a in tags if tag == "polyline"]
    assert len(set(drawn)) == 8
    assert [color for color, _ in drawn[: len(LINES)]] == list(LINES)
    texts = " ".join(found)
    assert all(name in texts for name in (*curves, "<i>&"))
    assert [tag for tag, _ in tags if tag in ("b", "i")] == ["b"]  # of the title


def test_long_curves_have_no_marks():
    chart = line_chart("a", {"one": [(n, n / 7) for n in range(1000)]})
    assert "circle" not in chart
    assert len(lines(chart)[0]) == 1000


@pytest.mark.parametrize(
    "low, high, smallest, expected",
    [
        (0, 1, 0, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (1, 3, 1, [1, 2, 3]),
        (7, 7, 1, [7, 8]),
        (0, 0, 0, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-3, 4, 0, [-4, -2, 0, 2, 4]),
        (1e-7, 6e-7, 0, [1e-7, 2e-7, 3e-7, 4e-7, 5e-7, 6e-7]),
        (1, 400, 1, [0, 100, 200, 300, 400]),
    ],
)
def test_ticks(low, high, smallest, expected):
    assert _ticks(low, high, smallest) == expected


def test_almost_equal_values_have_an_axis():
    for value in (0.3, -2.0, 5e9):
        ticks = _ticks(value, np.nextafter(value, 1e10))
        assert ticks[0] <= value < ticks[-1]
        assert len(set(ticks)) == len(ticks) < 15


def test_the_cells_of_a_table_are_text():
    found, tags = read(table([["<b>", "1"]], ["", "a&b"]))
    assert found == ["a&b", "<b>", "1"]
    assert [tag for tag, _ in tags] == ["table", "tr", "th", "th", "tr", "td", "td"]
