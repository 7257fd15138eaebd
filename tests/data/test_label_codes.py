"""Which mask values are classes, judged by how often they occur."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from keras_deeplab.data.label_codes import (
    LabelCode,
    Settings,
    check_ignored,
    infer_values,
    settled,
)


def label_map(pixels: dict[int, int]) -> np.ndarray:
    """The pixel counts of a label map by its values."""
    counts = np.zeros(256, np.int64)
    counts[list(pixels)] = list(pixels.values())
    return counts


def disc(radius: float, border: float, size: int = 96) -> np.ndarray:
    """The counts of a label map with one disc inside an ignored ring, as PASCAL VOC draws them."""
    y, x = np.mgrid[:size, :size] - size / 2
    distance = np.hypot(y, x)
    label = np.where(distance < radius, 1, 0)
    label[abs(distance - radius) < border / 2] = 255
    return np.bincount(label.reshape(-1), minlength=256)


@pytest.mark.parametrize(
    "ignored, present, values",
    [
        ((0,), [0, 1, 2], (1, 2)),
        ((1,), [0, 1, 2, 3], (0, 2, 3)),
        ((0, 255), [0, 1, 2, 255], (1, 2)),
        ((2,), [0, 1, 2], (0, 1)),
        ((255,), [0, 1, 2, 255], (0, 1, 2)),
        ((0,), [1, 2, 3], (1, 2, 3)),  # the ignored value does not occur
        ((1,), [0, 1, 3, 4], (0, 2, 3, 4)),  # a class that does not occur keeps its place
        ((128,), [0, 128, 255], (0, 255)),
        ((0,), range(151), tuple(range(1, 151))),
        ((), [0, 1, 2], (0, 1, 2)),
        (None, [0, 1, 2, 255], (0, 1, 2)),
        (None, [0, 255], (0, 255)),
        (None, [0, 2], (0, 1, 2)),
    ],
)
def test_ignored_values_take_effect(ignored, present, values):
    found, _ = infer_values([label_map(dict.fromkeys(present, 10))], ignored)
    info, code = settled(Settings(ignore_label=ignored), found)
    assert code.values == values
    assert info.num_classes == len(values)
    expected = [values.index(value) if value in values else 255 for value in present]
    assert code.table[list(present)].tolist() == expected
    assert code.known[list(present)].all()


def test_a_value_is_a_class_or_ignored():
    assert settled(Settings(values=(0, 255)))[1] == LabelCode((0, 255), ())


@pytest.mark.parametrize(
    "values, ignored, text",
    [
        ((0, 1, 2), (255,), ""),
        ((0, 255), (), "labels 0, 1 are the mask values 0, 255"),
        ((0, 2, 3), (1, 255), "labels 0..2 are the mask values 0, 2, 3, ignored: 1, 255"),
    ],
)
def test_mapping_says_which_value_is_which_label(values, ignored, text):
    assert LabelCode(values, ignored).mapping == text


SOFT_EDGES = {0: 5000, 255: 4000} | dict.fromkeys(range(1, 255), 4)


@pytest.mark.parametrize(
    "maps, ignored, why, readings",
    [
        (
            [{0: 9499, 1: 1, 255: 500}],
            None,
            "500 pixels (5.00%) are ignored (255), but all classes except 0 hold 1 pixel (0.01%)",
            [([0, 255], [1]), ([0, 1], [255])],
        ),
        (
            [{0: 950, 255: 50}] * 9 + [{0: 949, 1: 1, 255: 50}],
            None,
            "hold 1 pixel",
            [([0, 255], [1]), ([0, 1], [255])],
        ),
        # Stray pixels of several values.
        (
            [{0: 7000, 1: 9, 2: 5, 3: 2, 255: 2984}],
            None,
            "hold 16 pixels",
            [([0, 255], [1, 2, 3]), ([0, 1, 2, 3], [255])],
        ),
        # 255 is most of the image.
        (
            [{0: 200, 1: 200, 255: 600}],
            None,
            "255 holds 600 pixels (60.00%)",
            [([0, 1, 255], None), ([0, 1], [255])],
        ),
        # The same class is 1 in some files and 255 in others.
        ([{0: 700, 1: 300}] * 7 + [{0: 700, 255: 300}] * 3, None, "900 of the 900 pixels", None),
        # Not the background but the foreground has the other values.
        ([{0: 1, 1: 900, 255: 99}], None, "all classes except 1 hold 1 pixel", None),
        (
            [{0: 500, 128: 200, 255: 300}],
            None,
            "not the numbers",
            [([0, 128, 255], None), ([0, 128], [255])],
        ),
        ([{0: 200, 128: 200, 254: 600}], None, "not the numbers", [([0, 128, 254], None)]),
        ([SOFT_EDGES], None, "9 (4 pixels), ...", None),
        ([{1: 50, 255: 50}], None, "fewer than two values", [([1, 255], None)]),
        ([{3: 50}], None, "fewer than two values", [([0, 3], None)]),
        ([{255: 50}], None, "fewer than two values", [([0, 255], None)]),
        ([{0: 10, 1: 10}], (0,), "fewer than two values", [([0, 1], None)]),
        ([{0: 10, 255: 10}], (0, 255), "fewer than two values", [([0, 255], None)]),
        ([{0: 10, 128: 10, 255: 10}], (0,), "not the numbers", [([128, 255], [0])]),
        ([{0: 10, 1: 10, 255: 10}], (), "not the numbers", [([0, 1, 255], None)]),
    ],
)
def test_values_that_can_be_read_in_two_ways_are_an_error(maps, ignored, why, readings):
    maps = [label_map(pixels) for pixels in maps]
    with pytest.raises(ValueError, match="The label maps hold the values") as caught:
        infer_values(maps, ignored)
    text = str(caught.value)
    assert why in text
    if len(np.flatnonzero(sum(maps))) > 10:
        return  # the lists are shortened
    # What is shown can be pasted.
    shown = [json.loads(found) for found in re.findall(r"\{.*?\}", text)]
    if readings:
        assert [(one["values"], one.get("ignore_label")) for one in shown] == readings
    for content in shown:
        lists = {key: tuple(values) for key, values in content.items()}
        assert settled(Settings(**lists))[1].known[np.flatnonzero(sum(maps))].all()


@pytest.mark.parametrize("radius, border", [(30, 5), (10, 3), (5, 5), (40, 1)])
def test_thin_borders_are_ignored_without_a_warning(radius, border):
    assert infer_values([disc(radius, border)] * 3, None) == ((0, 1), ())


@pytest.mark.parametrize(
    "maps",
    [
        [{0: 6000, 1: 3000, 15: 600, **dict.fromkeys(range(2, 15), 10), 255: 500}],  # VOC
        [{0: 9000, 1: 500, 2: 20, 255: 1000}, {0: 10000}, {1: 900, 255: 20}],
        [{0: 10}, {1: 10}],
    ],
)
def test_usual_labels_pass_without_a_warning(maps):
    assert infer_values([label_map(pixels) for pixels in maps], None)[1] == ()


@pytest.mark.parametrize(
    "maps, count, text",
    [
        ([{0: 400, 1: 300, 255: 300}], 2, "255 is ignored and holds 300 pixels (30.00%)"),
        ([{1: 50, 2: 50, 3: 50}], 4, 'count from 1, write "values": [1, 2, 3] into'),
        ([{1: 50, 2: 50, 255: 1}], 3, 'count from 1, write "values": [1, 2] into'),
        ([{0: 50000, 1: 50000}, {0: 5000, 2: 3}], 3, "value 2 counts as a class, but only one"),
        ([{0: 50000, 255: 1}, {0: 5000}], 2, "holds it, on 1 pixel (0.00%)"),
    ],
)
def test_what_is_rarely_meant_is_a_warning(maps, count, text):
    values, notes = infer_values([label_map(pixels) for pixels in maps], None)
    assert len(values) == count
    assert len(notes) == 1
    assert text in notes[0]


def test_a_border_that_is_declared_may_be_wide():
    counts = label_map({0: 100, 1: 100, 255: 900})
    assert infer_values([counts], (255,)) == ((0, 1), ())
    declared = Settings(classes=("a", "b"), ignore_label=(255,))
    assert check_ignored(counts, declared, settled(declared)[1]) == []
    listed = Settings(classes=("a", "b"))
    (note,) = check_ignored(counts, listed, settled(listed)[1])
    assert "255 is ignored and holds 900 pixels (81.82%)" in note


@pytest.mark.parametrize(
    "pixels, ignore_label, text",
    [
        ({0: 9000, 1: 4, 255: 500}, None, r'"values": [0, 255] .*, or "ignore_label": 255'),
        ({0: 9000, 1: 6, 255: 500}, None, None),  # more than one in a hundred of them
        ({0: 9000, 1: 1, 255: 500}, (255,), None),
        (
            {0: 9000, 7: 20, 255: 500},
            (7, 255),
            r'^520 .* ignored \(7, 255\), .*"values": [0, 255] .* class$',
        ),
        ({0: 9000}, (255,), None),
    ],
)
def test_a_single_listed_class_beside_ignored_pixels_is_an_error(pixels, ignore_label, text):
    settings = Settings(classes=("a", "b"), ignore_label=ignore_label)
    code = settled(settings)[1]
    if text is None:
        assert check_ignored(label_map(pixels), settings, code) == []
        return
    with pytest.raises(ValueError, match=text.replace("[", r"\[")):
        check_ignored(label_map(pixels), settings, code)
