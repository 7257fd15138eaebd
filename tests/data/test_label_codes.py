"""Which mask values are classes, judged by how often they occur."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from keras_deeplab.data.faults import FileFault
from keras_deeplab.data.label_codes import LabelCode, Settings, check_ignored, infer_values


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
        ((0, 255), [0, 1, 2, 255], (1, 2)),
        ((255,), [0, 1, 2, 255], (0, 1, 2)),
        ((0,), [1, 2, 3], (1, 2, 3)),  # the ignored value does not occur
        ((1,), [0, 1, 3, 4], (0, 2, 3, 4)),  # a class that does not occur keeps its place
        ((128,), [0, 128, 255], (0, 255)),
        ((0,), range(151), tuple(range(1, 151))),
        ((), [0, 1, 2], (0, 1, 2)),
        (None, [0, 1, 2, 255], (0, 1, 2)),
        (None, [0, 255], (0, 255)),
        (None, [0, 3], (0, 1, 2, 3)),  # half of them do not occur
    ],
)
def test_ignored_values_take_effect(ignored, present, values):
    found, _ = infer_values([label_map(dict.fromkeys(present, 10))], ignored)
    settings = Settings(values=found, ignore_label=ignored)
    assert settings.code.values == values
    assert settings.info().num_classes == len(values)
    expected = [values.index(value) if value in values else 255 for value in present]
    assert settings.code.table[list(present)].tolist() == expected
    assert settings.code.known[list(present)].all()


def test_a_value_is_a_class_or_ignored():
    assert Settings(values=(0, 255)).code == LabelCode((0, 255), ())


SOFT_EDGES = {0: 5000, 255: 4000} | dict.fromkeys(range(1, 255), 4)


@pytest.mark.parametrize(
    "maps, ignored, why, values",
    [
        (
            [{0: 9499, 1: 1, 255: 500}],
            None,
            "500 pixels (5.00%) are ignored (255), most of them where all classes but one hold "
            "1 pixel (0.01%)",
            [0, 1, 255],
        ),
        ([{0: 950, 255: 50}] * 9 + [{0: 949, 1: 1, 255: 50}], None, "hold 1 pixel", [0, 1, 255]),
        (
            [{0: 390, 1: 10}, *[{255: 400}] * 4, *[{0: 400}] * 5],
            None,
            "hold 10 pixels",
            [0, 1, 255],
        ),
        # Stray pixels of several values.
        ([{0: 7000, 1: 9, 2: 5, 255: 2986}], None, "hold 14 pixels", [0, 1, 2, 255]),
        # 255 is most of the image.
        ([{0: 200, 1: 200, 255: 600}], None, "255 holds 600 pixels (60.00%)", [0, 1, 255]),
        # The same class is 1 in some files and 255 in others.
        ([{0: 700, 1: 300}] * 7 + [{0: 700, 255: 300}] * 3, None, "900 pixels", [0, 1, 255]),
        # Not the background but the foreground has the other values.
        ([{0: 1, 1: 900, 255: 99}], None, "99 pixels (9.90%) are ignored", [0, 1, 255]),
        ([{0: 500, 128: 200, 255: 300}], None, "not the numbers", [0, 128, 255]),
        ([{0: 200, 128: 200, 254: 600}], None, "not the numbers", [0, 128, 254]),
        ([SOFT_EDGES], None, "9 (4 pixels), ...", None),  # the lists are shortened
        ([{1: 50, 255: 50}], None, "fewer than two values", [1, 255]),
        ([{3: 50}], None, "fewer than two values", [0, 3]),
        ([{0: 10, 1: 10}], (0,), "fewer than two values", [0, 1]),
        ([{0: 10, 128: 10, 255: 10}], (0,), "not the numbers", [128, 255]),
        ([{0: 10, 1: 10, 255: 10}], (), "not the numbers", [0, 1, 255]),
    ],
)
def test_values_that_can_be_read_in_two_ways_are_an_error(maps, ignored, why, values):
    maps = [label_map(pixels) for pixels in maps]
    with pytest.raises(ValueError, match="The label maps hold the values") as caught:
        infer_values(maps, ignored)
    assert why in str(caught.value)
    if values:  # what is shown can be pasted
        content = json.loads(re.search(r"\{.*?\}", str(caught.value))[0])
        assert content["values"] == values
        lists = {key: tuple(items) for key, items in content.items()}
        assert Settings(**lists).code.known[np.flatnonzero(sum(maps))].all()


@pytest.mark.parametrize(
    "maps",
    [
        *([disc(radius, border)] * 3 for radius, border in ((30, 5), (10, 3), (5, 5), (40, 1))),
        [label_map({0: 6000, 1: 3000, 15: 600, **dict.fromkeys(range(2, 15), 10), 255: 500})],
        list(map(label_map, [{0: 9000, 1: 500, 2: 20, 255: 1000}, {0: 99}, {1: 900, 255: 20}])),
        list(map(label_map, [{0: 10}, {1: 10}])),
        list(map(label_map, [{0: 50000, 1: 50000, 2: 1}, {0: 5000, 2: 3}])),  # rare, but twice
    ],
)
def test_usual_labels_pass_without_a_warning(maps):
    assert infer_values(maps, None)[1] == []


@pytest.mark.parametrize(
    "maps, count, text",
    [
        ([{0: 400, 1: 300, 255: 300}], 2, "255 is ignored and holds 300 pixels (30.00%)"),
        ([{1: 50, 2: 50, 255: 1}], 3, 'count from 1, write "values": [1, 2] into'),
        ([{0: 50000, 1: 50000}, {0: 5000, 2: 3}], 3, "value 2 counts as a class, but only one"),
        ([{0: 50000, 255: 1}, {0: 5000}], 2, "holds it, on 1 pixel (0.00%)"),
    ],
)
def test_what_is_rarely_meant_is_a_warning(maps, count, text):
    values, (note,) = infer_values([label_map(pixels) for pixels in maps], None)
    assert len(values) == count
    assert text in note


def test_a_border_that_is_declared_may_be_wide():
    counts = label_map({0: 100, 1: 100, 255: 900})
    assert infer_values([counts], (255,)) == ((0, 1), [])
    listed = Settings(classes=("a", "b"))
    of_colors = Settings(colors=((0, 0, 0), (9, 9, 9)), ignore_colors=((8, 8, 8),))
    for declared in (replace(listed, ignore_label=(255,)), of_colors):
        assert check_ignored(counts, declared, declared.code) == []
    (note,) = check_ignored(counts, listed, listed.code)
    assert "255 is ignored and holds 900 pixels (81.82%)" in note


@pytest.mark.parametrize(
    "pixels, ignore_label, text",
    [
        ({0: 9000, 1: 4, 255: 500}, None, '"values": [0, 1, 255]'),
        ({0: 9000, 1: 6, 255: 500}, None, None),  # more than one in a hundred of them
        ({0: 9000, 1: 1, 255: 500}, (255,), None),
        ({0: 9000, 7: 20, 255: 500}, (7, 255), "520 pixels (5.46%) are ignored (7, 255)"),
        ({0: 9000}, (255,), None),
    ],
)
def test_a_single_listed_class_beside_ignored_pixels_is_an_error(pixels, ignore_label, text):
    settings = Settings(classes=("a", "b"), ignore_label=ignore_label)
    if text is None:
        assert check_ignored(label_map(pixels), settings, settings.code) == []
        return
    with pytest.raises(ValueError, match=re.escape(text)):
        check_ignored(label_map(pixels), settings, settings.code)


@pytest.mark.parametrize("stored", [np.ascontiguousarray, np.asfortranarray])
def test_labels_of_values_in_any_order_of_memory(stored):
    code = LabelCode((7, 3, 200), (0, 255))
    values = stored(np.resize(np.array([7, 3, 200, 0, 255], np.uint8), (101, 103)))
    labels = code.labels(values)
    np.testing.assert_array_equal(labels, code.table[values])
    assert labels.dtype == np.uint8
    assert labels.flags.writeable
    values[5, 7] = values[6, 8] = 9
    values[90, 1] = 4
    with pytest.raises(FileFault, match=re.escape("[4, 9]")):
        code.labels(values)
