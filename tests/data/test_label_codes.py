"""Which mask values are classes, judged by how often they occur."""

from __future__ import annotations

import json

import numpy as np
import pytest

from keras_deeplab.data.label_codes import (
    LabelCode,
    Settings,
    check_undeclared_ignored,
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
        ((11,), range(12), tuple(range(11))),
        ((0,), range(151), tuple(range(1, 151))),
        ((), [0, 1, 2], (0, 1, 2)),
        (None, [0, 1, 2, 255], (0, 1, 2)),
        (None, [0, 255], (0, 255)),
    ],
)
def test_ignored_values_take_effect(ignored, present, values):
    found, _ = infer_values([label_map(dict.fromkeys(present, 10))], ignored)
    info, code = settled(Settings(ignored=ignored), found)
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
        ((0, 255), (), "mask values 0 and 255 are the labels 0 and 1"),
        ((0, 2, 3), (1, 255), "mask values 0, 2, 3 are the labels 0..2; ignored: 1 and 255"),
        (tuple(range(1, 151)), (0,), "mask values 1..150 are the labels 0..149; ignored: 0"),
    ],
)
def test_mapping_says_which_value_is_which_label(values, ignored, text):
    assert LabelCode(values, ignored).mapping == text


STRAY = '{"classes": ["class_0", "class_1"], "values": [0, 255], "ignore_label": [1]}'
THREE = '{"classes": ["class_0", "class_1", "class_2"], "values": [0, 1, 255]}'
BORDER = '{"classes": ["class_0", "class_1"], "values": [0, 1], "ignore_label": [255]}'


@pytest.mark.parametrize(
    "maps, texts",
    [
        ([{0: 9499, 1: 1, 255: 500}], ["500 pixels (5.00%)", "hold 1 together", STRAY, BORDER]),
        ([{0: 380, 1: 1, 255: 19}], ["hold 1 together (0.25%)", STRAY, BORDER]),
        ([{0: 950, 255: 50}] * 9 + [{0: 949, 1: 1, 255: 50}], [STRAY, BORDER]),
        # Stray pixels of several values.
        ([{0: 7000, 1: 9, 2: 5, 3: 2, 255: 2984}], ['"ignore_label": [1, 2, 3]', "soft edges"]),
        # 255 is most of the image.
        ([{0: 200, 1: 200, 255: 600}], ["255 holds 60.00% of all pixels", THREE, BORDER]),
        # The same class is 1 in some files and 255 in others.
        (
            [{0: 700, 1: 300}] * 7 + [{0: 700, 255: 300}] * 3,
            ["100.00% of the pixels of 255 are in label maps with one class only", "save it with"],
        ),
        # Not the background but the foreground has the other values.
        ([{0: 1, 1: 900, 255: 99}], ["hold 1 together", "255 is a class", "255 is ignored"]),
        ([{0: 500, 128: 200, 255: 300}], ['"values": [0, 128, 255]}', '"values": [0, 128], "ign']),
        ([{0: 500, 64: 20, 128: 20, 191: 20, 255: 440}], ["255]}", "255 is ignored", "soft edges"]),
        # Soft edges: all values between.
        ([{0: 5000, 255: 4000} | dict.fromkeys(range(1, 255), 4)], ["soft edges", "and 246 other"]),
        ([{1: 50, 255: 50}], ["only one value", '"values": [1, 255]']),
        ([{3: 50}], ["only one value", '"values": [0, 3]']),
        ([{255: 50}], ["all pixels are ignored", '"values": [0, 255]']),
    ],
)
def test_values_that_can_be_read_in_two_ways_are_an_error(maps, texts):
    with pytest.raises(ValueError, match="the label maps hold") as caught:
        infer_values([label_map(pixels) for pixels in maps], None)
    for text in (*texts, *(f"{value} (" for value in list(maps[0])[:1])):
        assert text in str(caught.value)


@pytest.mark.parametrize(
    "ignored, pixels, text",
    [
        ((0,), {0: 10, 1: 10}, '"values": [0, 1]}'),
        ((255,), {0: 10, 255: 10}, '"values": [0, 255]}'),
        ((0, 255), {0: 10, 255: 10}, '"values": [0, 255]}'),
        ((0,), {0: 10, 128: 10, 255: 10}, '"values": [128, 255], "ignore_label": [0]}'),
        ((0,), {0: 10, 1: 10, 2: 10, 255: 10}, '"values": [1, 2, 255], "ignore_label": [0]}'),
        ((), {0: 10, 1: 10, 255: 10}, '"values": [0, 1, 255]}'),
    ],
)
def test_declared_ignored_values_that_leave_no_labels_are_an_error(ignored, pixels, text):
    with pytest.raises(ValueError, match="Write a dataset.json") as caught:
        infer_values([label_map(pixels)], ignored)
    assert text in str(caught.value)


@pytest.mark.parametrize("radius, border", [(30, 5), (10, 3), (5, 5), (40, 1)])
def test_thin_borders_are_ignored_without_a_warning(radius, border):
    assert infer_values([disc(radius, border)] * 3, None) == ((0, 1), ())


@pytest.mark.parametrize(
    "maps",
    [
        [{0: 6000, 1: 3000, 15: 600, **dict.fromkeys(range(2, 15), 10), 255: 500}],  # VOC
        [{0: 9000, 1: 500, 2: 20, 255: 1000}, {0: 10000}, {1: 900, 255: 20}],
        [{0: 5000, 1: 5000}],
        [{0: 10}, {1: 10}],
    ],
)
def test_usual_labels_pass_without_a_warning(maps):
    assert infer_values([label_map(pixels) for pixels in maps], None)[1] == ()


@pytest.mark.parametrize(
    "maps, count, text",
    [
        ([{0: 400, 1: 300, 255: 300}], 2, "255 is ignored and holds 30.00% of all pixels"),
        ([{1: 50, 2: 50, 3: 50}], 4, 'count from 1, write "values": [1, 2, 3] into'),
        ([{1: 50, 2: 50, 255: 1}], 3, 'count from 1, write "values": [1, 2] into'),
        ([{0: 50000, 1: 50000}, {0: 5000, 2: 3}], 3, "value 2 counts as a class, but only one"),
        ([{0: 50000, 255: 1}, {0: 5000}], 2, "on 1 pixels (under 0.01% of all)"),
    ],
)
def test_what_is_rarely_meant_is_a_warning(maps, count, text):
    values, notes = infer_values([label_map(pixels) for pixels in maps], None)
    assert len(values) == count
    assert len(notes) == 1
    assert text in notes[0]


def test_a_border_that_is_declared_may_be_wide():
    maps = [label_map({0: 100, 1: 100, 255: 900})]
    assert infer_values(maps, (255,)) == ((0, 1), ())
    with pytest.raises(ValueError, match=r"81.82% of all pixels"):
        check_undeclared_ignored(maps)


@pytest.mark.parametrize(
    "maps, readings",
    [
        ([{0: 9499, 1: 1, 255: 500}], 2),
        ([{0: 500, 128: 200, 255: 300}], 2),
        ([{0: 200, 1: 200, 255: 600}], 2),
        ([{0: 200, 128: 200, 254: 600}], 1),
        ([{1: 50, 255: 50}], 1),
    ],
)
def test_what_the_error_shows_can_be_pasted(maps, readings):
    maps = [label_map(pixels) for pixels in maps]
    with pytest.raises(ValueError, match="such as|if 255 is") as caught:
        infer_values(maps, None)
    shown = [text[: text.index("}") + 1] for text in str(caught.value).split("{")[1:]]
    assert len(shown) == readings
    for text in shown:
        content = json.loads("{" + text)
        settings = Settings(
            tuple(content["classes"]),
            values=tuple(content["values"]),
            ignored=tuple(content["ignore_label"]) if "ignore_label" in content else None,
        )
        _, code = settled(settings)
        assert code.known[np.flatnonzero(sum(maps))].all()
