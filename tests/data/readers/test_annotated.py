"""COCO, LabelMe and CVAT: label maps from colours of segments, outlines and run lengths."""

from __future__ import annotations

import base64
import io
import json
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from keras_deeplab import data
from keras_deeplab.data.faults import FileFault
from keras_deeplab.data.formats import MAX_PIXELS
from keras_deeplab.data.readers import polygons
from keras_deeplab.data.readers.coco import Coco, _uncompressed
from keras_deeplab.data.readers.polygons import Area, drawn, ellipse, rotated, run_lengths

CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}]
IMAGE = {"id": 7, "file_name": "000000000001.jpg", "height": 12, "width": 16}
SMALL, LARGE = [[2, 2, 5, 2, 5, 5, 2, 5]], [[0, 0, 9, 0, 9, 9, 0, 9]]


def an_object(category, outline, **more):
    return {"image_id": 7, "category_id": category, "segmentation": outline, **more}


def compressed(counts):
    """COCO's text of run lengths, after `rleToString` of its API."""
    text = ""
    for place, count in enumerate(counts):
        number = count - (counts[place - 2] if place > 2 else 0)
        more = True
        while more:
            bits, number = number & 31, number >> 5
            more = number != (-1 if bits & 16 else 0)
            text += chr((bits | 32 * more) + 48)
    return text


def test_compressed_run_lengths():
    counts = [0, 5, 1000, 3, 70_000, 2, 1, 31, 32, 16]
    assert _uncompressed(compressed(counts)) == counts
    mask = np.zeros((4, 3), bool)
    mask[1:, 1] = mask[0, 2] = True
    np.testing.assert_array_equal(run_lengths([5, 4, 3], (4, 3), by_columns=True), mask)
    np.testing.assert_array_equal(run_lengths([5, 4, 3], (3, 4), by_columns=False), mask.T)
    with pytest.raises(FileFault, match="runs of 12 pixels for an area of 5x4"):
        run_lengths([5, 4, 3], (4, 5), by_columns=True)


def test_numbers_of_run_lengths_are_those_of_pixels():
    """Longer ones would take time that grows with their square."""
    largest = [0, MAX_PIXELS, 5, 0]  # and the negative difference of it
    assert _uncompressed(compressed(largest)) == largest
    for text in ("o" * 1_000_000, "0" + "o" * 8 + "0"):
        with pytest.raises(ValueError, match="a run length of more than 7 characters"):
            _uncompressed(text)


def test_areas_cover_earlier_ones():
    square = Area(1, [(0, 0), (9, 0), (9, 9), (0, 9)])
    disc = Area(2, ellipse((10, 10), (5, 5)))
    label = drawn((20, 20), [square, disc])
    assert label[3, 3] == 1
    assert label[9, 9] == label[10, 14] == 2
    assert label[19, 19] == 0
    assert 74 <= np.sum(label == 2) <= 84  # 25 pi = 79
    for side, areas, message in (
        (20, [Area(1, [(0, 0), (9, 0)])], "an outline of 2 points"),
        (20, [Area(1, [(0, 0), (1e12, 0), (0, 9)])], "an outline of 3 points"),
        (2**20, [], "image too large"),
        (-5, [], "a size of -5x-5 pixels"),
    ):
        with pytest.raises(FileFault, match=message):
            drawn((side, side), areas)


def crossings(points, x, y):
    """The edges of an outline to the left of a point."""
    ends = zip(points, np.roll(points, -1, 0), strict=True)
    edges = [(one, other) for one, other in ends if (one[1] <= y) != (other[1] <= y)]
    return sum(x >= a[0] + (y - a[1]) * (b[0] - a[0]) / (b[1] - a[1]) for a, b in edges)


@pytest.mark.parametrize("whole", [False, True])
def test_pixels_whose_centres_are_inside_are_filled(whole):
    random, filled = np.random.default_rng(0), 0
    for count in (3, 4, 5, 12):
        for _ in range(5):
            points = random.uniform(-6, 26, (count, 2))  # with edges that cross each other
            points = np.round(points) + 0.25 if whole else points
            label = drawn((18, 21), [Area(1, points.tolist())])
            expected = [
                [crossings(points, x + 0.5, y + 0.5) % 2 for x in range(21)] for y in range(18)
            ]
            np.testing.assert_array_equal(label, expected)
            filled += label.sum()
    assert filled > 1000
    square = [(10, 10), (20, 10), (20, 20), (10, 20)]
    assert drawn((40, 40), [Area(1, square)]).sum() == 100


def test_outlines_of_many_crossings_take_little_memory(monkeypatch):
    """Each of their edges may cross all rows of pixels."""
    outline = [(k % 2 * 200 + k % 7, k % 3 * 900) for k in range(2000)]
    tracemalloc.start()
    try:
        label = drawn((1800, 210), [Area(1, outline)])
        assert tracemalloc.get_traced_memory()[1] < 60e6
    finally:
        tracemalloc.stop()
    monkeypatch.setattr(polygons, "PART", 5)
    np.testing.assert_array_equal(drawn((1800, 210), [Area(1, outline)]), label)
    assert 0.1 < label.mean() < 0.9
    outside = [(600 + 20 * k, -100 if k % 2 else 700) for k in range(2000)]
    assert not drawn((512, 512), [Area(1, outside)]).any()
    zigzag = [(k % 16, k % 2 * 2000) for k in range(16_000)]
    with pytest.raises(FileFault, match="an outline that crosses rows of pixels 32000000 times"):
        drawn((2000, 16), [Area(1, zigzag)])


def test_an_edge_is_the_same_for_the_outlines_on_both_sides():
    random = np.random.default_rng(1)
    for _ in range(300):
        p, q, r, s = (random.integers(0, 64, (4, 2)) + 0.5).tolist()  # centres of pixels
        first, other, both = (
            drawn((64, 64), [Area(1, points)]) for points in ([p, q, r], [q, p, s], [q, r, p, s])
        )
        np.testing.assert_array_equal(first ^ other, both)


def test_masks_are_cut_at_the_border():
    mask = np.ones((3, 4), bool)
    mask[1, 1] = False
    for left, top in ((-2, -1), (0, 0), (4, 3), (9, 9), (-9, 0)):
        expected = np.zeros((5, 6), np.uint8)
        for y, x in np.add(np.argwhere(mask), (top, left)):
            if 0 <= y < 5 and 0 <= x < 6:
                expected[y, x] = 7
        found = drawn((5, 6), [Area(7, mask=mask, place=(left, top))])
        np.testing.assert_array_equal(found, expected)


@pytest.fixture
def coco(tmp_path, draw):
    """Writes annotations of a kind for images of both splits, 12x16."""

    def write(kind, annotations, more=None):
        (tmp_path / "annotations").mkdir(exist_ok=True)
        for split in ("train", "val"):
            draw(f"{split}2017/000000000001.jpg")
            content = {"images": [IMAGE], "categories": CATEGORIES, "annotations": annotations}
            path = tmp_path / f"annotations/{kind}_{split}2017.json"
            encoding = "utf-8-sig" if split == "val" else "utf-8"  # with a byte order mark
            path.write_text(json.dumps(content | (more or {})), encoding)
        return tmp_path

    return write


def test_instances(coco, read):
    mask = np.zeros((12, 16), bool)
    mask[8:, 12:] = True
    runs = np.flatnonzero(np.diff(np.r_[0, mask.T.reshape(-1), 0]))
    counts = np.diff(np.r_[0, runs, mask.size]).tolist()
    crowd = {"size": [12, 16], "counts": compressed(counts)}
    objects = [
        an_object(18, SMALL, area=9, iscrowd=0),
        an_object(3, LARGE, area=81, iscrowd=0),
        an_object(3, crowd, area=16, iscrowd=1),
    ]
    source, found = read(f"coco:{coco('instances', objects)}")
    assert source.info.classes == ("background", "car", "dog")
    label = found["val"]["000000000001"]
    assert label[3, 3] == 2  # drawn over the larger one
    assert label[8, 8] == 1
    np.testing.assert_array_equal(label == 255, mask)
    assert label[11, 0] == 0


def test_a_category_may_be_the_background(coco, read):
    categories = [*CATEGORIES, {"id": 5, "name": "Background"}]
    outlines = {18: LARGE, 3: [[10, 0, 15, 0, 15, 9, 10, 9]], 5: [[2, 2, 5, 2, 5, 5]]}
    areas = [an_object(*pair, area=100 - len(pair[1][0])) for pair in outlines.items()]
    source, found = read(f"coco:{coco('instances', areas, {'categories': categories})}")
    assert source.info.classes == ("Background", "car", "dog")
    label = found["val"]["000000000001"]
    assert [label[5, 1], label[5, 12], label[11, 0]] == [2, 1, 0]


@pytest.mark.parametrize("used", [False, True])
def test_the_name_of_a_project_is_a_class_only_where_it_has_objects(coco, read, used):
    categories = [{"id": 0, "name": "pets", "supercategory": "none"}]
    categories += [one | {"supercategory": "pets"} for one in CATEGORIES]
    root = coco("instances", [an_object(0, LARGE)] * used, {"categories": categories})
    source, _ = read(f"coco:{root}")
    assert source.info.classes == ("background", *["pets"] * used, "car", "dog")


def test_images_that_annotations_do_not_list_are_left_out(coco, read, draw, tmp_path):
    root = coco("instances", [an_object(18, LARGE, area=81)])
    for number in range(12):
        draw(f"train2017/{number}.jpg")
    source, found = read(f"coco:{root}")
    assert list(found["train"]) == ["000000000001"]
    (warning,) = [one for one in data.audit(source).warnings if "left out" in one]
    expected = "train: 12 images that instances_train2017.json does not list are left out: "
    assert warning == f"{expected}0, 1, 10, 11, 2, 3, 4, 5, 6, 7, ..."

    for name in ("images/train/a.jpg", "images/b.jpg", "more/a.jpg"):
        draw(f"cvat/{name}")
    (tmp_path / "cvat/annotations.xml").write_text(XML.format(subset='subset="Train"'))
    report = data.audit(f"cvat:{tmp_path / 'cvat'}")
    assert report.splits["train"].images == 1
    listed = "images/b.jpg, more/a.jpg"
    expected = f"train: 2 images that annotations.xml does not list are left out: {listed}"
    assert expected in report.warnings


def test_a_mask_of_the_same_name_is_not_the_image_of_coco(coco, draw, read):
    root = coco("instances", [])
    for split in ("train", "val"):
        draw(f"{split}2017/000000000001.png", np.zeros((12, 16, 3)))
    source, _ = read(f"coco:{root}")
    assert source.files("train").images["000000000001"].suffix == ".jpg"


def test_run_lengths_of_another_size(coco):
    turned = {"size": [16, 12], "counts": [0, 24, 168]}
    root = coco("instances", [{"image_id": 7, "category_id": 3, "segmentation": turned}])
    with pytest.raises(data.DatasetError, match=r"a mask of \[16, 12\] in an image of \[12, 16\]"):
        data.audit(f"coco:{root}")


@pytest.mark.parametrize(
    "annotations, folder, named",
    [
        ("annotations/instances_{}.json", "images/{}", "{name}"),  # CVAT, of a project with subsets
        ("{}/_annotations.coco.json", "{}", "{name}"),  # Roboflow
        ("annotations/instances_{}2017.json", "images/{}2017", "{name}"),  # Ultralytics
        ("{}.json", "images", "images/{name}"),
        ("{}/annotations.json", "{}/JPEGImages", "JPEGImages/{name}"),  # labelme2coco
    ],
)
def test_coco_of_annotation_tools_for_each_split(tmp_path, draw, read, annotations, folder, named):
    for split, category in (("train", 3), ("val", 18)):
        own = f"{split}.jpg" if folder == "images" else "a.jpg"  # of one name in both splits
        draw(f"{folder.format(split)}/{own}")
        image = {"id": 7, "file_name": named.format(name=own), "height": 12, "width": 16}
        areas = [{"image_id": 7, "category_id": category, "segmentation": [[0, 0, 9, 0, 9, 9]]}]
        path = tmp_path / annotations.format(split)
        path.parent.mkdir(parents=True, exist_ok=True)
        categories = [{"id": 0, "name": "objects", "supercategory": "none"}] * (
            "coco" in annotations
        )
        categories += [one | {"supercategory": "objects"} for one in CATEGORIES]
        content = {"images": [image], "categories": categories, "annotations": areas}
        path.write_text(json.dumps(content))
    source, found = read(f"coco:{tmp_path}")
    assert source.info.classes == ("background", "car", "dog")
    assert sorted(found) == ["train", "val"]
    for split, label in (("train", 1), ("val", 2)):
        (name,) = found[split]
        assert found[split][name].max() == label
        assert folder.format(split) in source.files(split).images[name].as_posix()


@pytest.mark.parametrize(
    "annotations, folder, named",
    [
        ("annotations/instances_default.json", "images", "{}"),  # CVAT
        ("annotations/instances_default.json", "images/default", "{}"),
        ("result.json", "images", "images/{}"),  # Label Studio
        ("result.json", "images", "../../label-studio/data/media/{}"),
        ("labels_my-project.json", ".", "{}"),  # makesense.ai
    ],
)
def test_one_coco_file_of_an_annotation_tool(tmp_path, draw, read, annotations, folder, named):
    images, areas = [], []
    for number in range(10):
        draw(f"{folder}/{number}.jpg")
        image = {
            "id": number,
            "file_name": named.format(f"{number}.jpg"),
            "height": 12,
            "width": 16,
        }
        images.append(image)
        points = [0, 0, number + 1, 0, number + 1, 9]
        areas.append({"image_id": number, "category_id": 18, "segmentation": [points]})
    categories = [{"id": 1, "name": "_background_"}, *CATEGORIES]
    content = {"images": images, "categories": categories, "annotations": areas}
    path = tmp_path / annotations
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    source, found = read(f"coco:{tmp_path}")
    assert source.info.classes == ("_background_", "car", "dog")
    assert [len(found[split]) for split in ("train", "val")] == [8, 2]
    for part in found.values():
        for name, labels in part.items():
            expected = drawn(
                (12, 16), [Area(2, [(0, 0), (int(name[-1]) + 1, 0), (int(name[-1]) + 1, 9)])]
            )
            np.testing.assert_array_equal(labels, expected)
    assert (tmp_path / "splits.json").exists()
    (tmp_path / "second.json").write_text(json.dumps(content))
    with pytest.raises(
        data.DatasetError, match="second.json: one file for each split, or a single"
    ):
        data.audit(f"coco:{tmp_path}")


def test_images_of_coco_in_folders_of_a_tool(tmp_path, draw, read):
    """With names that folders share, and images of both splits in one folder."""
    draw("images/default/other.jpg")
    for split, names in (("train", ("x/0.jpg", "y/0.jpg")), ("val", ("z/0.jpg",))):
        images = [
            {"id": number, "file_name": name, "height": 12, "width": 16}
            for number, name in enumerate(names)
        ]
        for name in names:
            draw(f"images/default/{name}")
        content = {"images": images, "categories": CATEGORIES, "annotations": []}
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    (tmp_path / "captions_train.json").write_text((tmp_path / "train.json").read_text())
    (tmp_path / "log.json").write_text("{}\n{}")
    source, found = read(f"coco:{tmp_path}")
    assert {split: list(part) for split, part in found.items()} == {
        "train": ["x/0", "y/0"],
        "val": ["z/0"],
    }
    left_out = [one for one in data.audit(source).warnings if "left out" in one]
    assert len(left_out) == 2
    assert all("1 images that" in one for one in left_out)
    (tmp_path / "images/default/z/0.jpg").unlink()
    with pytest.raises(data.DatasetError, match=r"z/0\.jpg, which val\.json lists, is missing"):
        data.audit(f"coco:{tmp_path}")


def test_a_missing_image_of_coco_keeps_its_name(tmp_path, draw, read):
    names = [f"media/{number}.jpg" for number in range(5)]
    images = [{"id": k, "file_name": n, "height": 12, "width": 16} for k, n in enumerate(names)]
    for number in range(5):
        draw(f"images/{number}.jpg")
    content = {"images": images, "categories": CATEGORIES, "annotations": []}
    (tmp_path / "result.json").write_text(json.dumps(content))
    read(f"coco:{tmp_path}")
    (tmp_path / "images/3.jpg").unlink()
    with pytest.raises(data.DatasetError, match=r"media/3\.jpg, which result\.json lists, is miss"):
        data.audit(f"coco:{tmp_path}")


def test_the_project_of_roboflow_with_objects_is_a_class(coco):
    categories = [{"id": 0, "name": "dogs", "supercategory": "none"}]
    categories.append({"id": 18, "name": "dog", "supercategory": "dogs"})
    assert len(Coco(coco("instances", [], {"categories": categories})).info.classes) == 2
    area = {"image_id": 7, "category_id": 0, "segmentation": [[0, 0, 9, 0, 9, 9]]}
    source = Coco(coco("instances", [area], {"categories": categories}))
    assert source.info.classes == ("background", "dogs", "dog")


def test_categories_are_those_of_all_splits(coco):
    root = coco("instances", [])
    path = root / "annotations/instances_val2017.json"
    path.write_text(path.read_text("utf-8-sig").replace("dog", "cat"))
    with pytest.raises(data.DatasetError, match="category 18 is 'dog', in val 'cat'"):
        data.audit(f"coco:{root}")


@pytest.mark.parametrize("area", [{}, {"area": 0}, {"area": None}])
def test_small_objects_without_an_area_cover_larger_ones(coco, read, area):
    runs = {"size": [12, 16], "counts": compressed([0, 24, 12 * 14])}
    areas = [an_object(*given, **area) for given in ((18, SMALL), (18, runs), (3, LARGE))]
    _, found = read(f"coco:{coco('instances', areas)}")
    label = found["val"]["000000000001"]
    assert [label[3, 3], label[8, 0], label[8, 8], label[11, 15]] == [2, 2, 1, 0]


def test_images_in_folders_of_coco(coco, read, draw):
    names = {7: "x/a.jpg", 8: "y\\a.jpg", 9: "other computer/000000000001.jpg"}
    images = [IMAGE | {"id": number, "file_name": name} for number, name in names.items()]
    root = coco("instances", [], {"images": images})
    for split in ("train2017", "val2017"):
        draw(f"{split}/x/a.jpg")
        draw(f"{split}/y/a.jpg")
    _, found = read(f"coco:{root}")
    assert list(found["val"]) == ["000000000001", "x/a", "y/a"]
    (root / "val2017/x/a.jpg").unlink()
    (root / "val2017/y/a.jpg").unlink()
    with pytest.raises(data.DatasetError, match="val2017/x/a.jpg, which .* is missing") as caught:
        data.audit(f"coco:{root}")
    assert [len(fault.found) for fault in caught.value.faults] == [2]


def test_label_maps_in_folders_of_coco(coco, read, draw):
    images, annotations = [], []
    for number, folder, category in ((7, "x", 3), (8, "y", 18)):
        images.append(IMAGE | {"id": number, "file_name": f"{folder}/a.jpg"})
        segments = {"segments_info": [{"id": 9, "category_id": category}]}
        annotations.append({"image_id": number, "file_name": f"{folder}/a.png", **segments})
    root = coco("panoptic", annotations, {"images": images})
    pixels = np.zeros((12, 16, 3))
    pixels[..., 0] = 9
    for split in ("train2017", "val2017"):
        for folder in "xy":
            draw(f"{split}/{folder}/a.jpg")
            draw(f"annotations/panoptic_{split}/{folder}/a.png", pixels)
    _, found = read(f"coco:{root}")
    assert {name: label[0, 0] for name, label in found["val"].items()} == {"x/a": 0, "y/a": 1}


def test_panoptic_comes_first(coco, read, draw):
    ids = np.zeros((12, 16), np.int64)
    ids[:4], ids[4:8], ids[8:10] = 70_000, 5, 300
    pixels = np.stack([ids >> shift & 255 for shift in (0, 8, 16)], -1)
    segments = [
        {"id": 70_000, "category_id": 18, "iscrowd": 0},
        {"id": 5, "category_id": 3, "iscrowd": 0},
        {"id": 300, "category_id": 3, "iscrowd": 1},
    ]
    one = {"image_id": 7, "file_name": "000000000001.png", "segments_info": segments}
    coco("instances", [])
    root = coco("panoptic", [one])
    for split in ("train", "val"):
        draw(f"annotations/panoptic_{split}2017/000000000001.png", pixels)
    source, found = read(f"coco:{root}")
    assert source.info.classes == ("car", "dog")
    np.testing.assert_array_equal(
        found["train"]["000000000001"][:, 0], np.repeat([1, 0, 255], [4, 4, 4])
    )
    path = root / "annotations/panoptic_val2017.json"
    path.write_text(path.read_text().replace("70000", "70001"))
    with pytest.raises(data.DatasetError, match=r"000000000001: segments \[70000\] are not descr"):
        data.audit(f"coco:{root}")


def test_stuff(tmp_path, draw, values, read):
    draw("train2017/1.jpg")
    draw("stuffthingmaps/train2017/1.png", values(0, 91, 255))
    (tmp_path / "labels.txt").write_text("0: unlabeled\n1: person\n92: banner\n")
    source, found = read(f"coco:{tmp_path}")
    assert source.info.classes == ("person", "banner")
    np.testing.assert_array_equal(found["train"]["1"], values(0, 1, 255))


WITHOUT = "000000000001: an object without an outline"
ALIKE = [IMAGE | {"file_name": "a/1.jpg"}, IMAGE | {"id": 8, "file_name": "a/1.png"}]


@pytest.mark.parametrize(
    "objects, more, message",
    [
        ([an_object(3, [], image_id=8)], {}, r"instances_train2017\.json: KeyError 8"),
        ([], {"images": ALIKE}, "two images have the same name"),
        ([an_object(4, [[0, 0, 1, 1]])], {}, "000000000001: KeyError 4"),
        ([], {"categories": [{"id": 3, "name": 3}]}, "2017.json: AttributeError 'int'"),
        ([{"image_id": 7, "category_id": 3, "bbox": [0, 0, 9, 9]}], {}, WITHOUT),
        ([an_object(3, [])], {}, WITHOUT),
        ([an_object(3, None)], {}, WITHOUT),
    ],
)
def test_damaged_annotations(coco, objects, more, message):
    with pytest.raises(data.DatasetError, match=message):
        data.audit(f"coco:{coco('instances', objects, more)}")


OTHER_VALUES = (None, True, [], {}, "", -1, float("inf"), "x")


def changed(content, path=()):
    """A JSON object with one of the other values in place of each of its values, and its path."""
    for key in content if isinstance(content, dict) else range(len(content)):
        old = content[key]
        for content[key] in OTHER_VALUES:
            yield (*path, key, content[key])
        content[key] = old
        if isinstance(old, dict | list):
            yield from changed(old, (*path, key))


def raised(name, root):
    """The type of another error than a DatasetError."""
    try:
        data.audit(f"{name}:{root}")
    except data.DatasetError:
        return None
    except Exception as error:
        return type(error)
    return None


@pytest.mark.parametrize("kind", ["instances", "panoptic"])
def test_other_values_in_coco_are_faults(tmp_path, draw, kind):
    draw("train2017/a.png")
    draw(f"annotations/{kind}_train2017/a.png", np.broadcast_to([5, 0, 0], (12, 16, 3)))
    image = {"id": 1, "file_name": "a.png", "height": 12, "width": 16}
    segments = {"file_name": "a.png", "segments_info": [{"id": 5, "category_id": 18, "iscrowd": 0}]}
    objects = [an_object(18, SMALL), an_object(3, {"size": [12, 16], "counts": [9, 183]})]
    annotations = [segments] if kind == "panoptic" else objects
    content = {
        "images": [image],
        "annotations": [one | {"image_id": 1} for one in annotations],
        "categories": [one | {"supercategory": "all"} for one in CATEGORIES],
    }
    found = {}
    for path in changed(content):
        (tmp_path / f"annotations/{kind}_train2017.json").write_text(json.dumps(content))
        found[str(path)] = raised("coco", tmp_path)
    assert {path: error for path, error in found.items() if error} == {}
    assert len(found) > 100


def test_names_in_annotations_cannot_forge_lines(coco, draw):
    """In faults, in warnings, and as classes; letters of all languages stay."""
    letters = "caf\u00e9 \u5929"
    bad, shown = f"\x1b[31m\nwarning: {letters}", rf"\x1b[31m\nwarning: {letters}"
    categories = [*CATEGORIES, {"id": 5, "name": bad}]
    root = coco("instances", [an_object(3, SMALL)], {"categories": categories})
    draw(f"train2017/{bad}.png")
    text = str(data.audit(f"coco:{root}"))
    assert f"are left out: {shown}" in text
    assert all(map(str.isprintable, text.split("\n")))
    assert all("pixel" in line or "left out" in line for line in text.split("\nwarning: ")[1:])
    coco("instances", [], {"images": [IMAGE | {"file_name": f"{bad}2.jpg"}]})
    with pytest.raises(data.DatasetError) as caught:
        data.audit(f"coco:{root}")
    for text in (str(caught.value), *map(str, caught.value.found)):
        assert "\x1b" not in text
    assert shown in str(caught.value)


@pytest.fixture
def labelme(tmp_path, draw):
    def write(name, shapes, **changes):
        draw(f"{name}.jpg")
        content = {"shapes": shapes, "imagePath": f"{name}.jpg", "imageData": None}
        content |= {"imageHeight": 12, "imageWidth": 16, **changes}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return tmp_path

    return write


def outline(label, points, kind="polygon"):
    return {"label": label, "points": points, "shape_type": kind}


def test_labelme(labelme, read):
    box = outline("box", [[2, 2], [9, 6]], "rectangle")
    for number in range(5):
        root = labelme(f"a{number}", [outline("zebra", [[0, 0], [15, 0], [15, 11], [0, 11]]), box])
    source, found = read(f"labelme:{root}")
    assert source.info.classes == ("background", "box", "zebra")
    assert [len(found[split]) for split in ("train", "val")] == [4, 1]
    (label,) = found["val"].values()
    assert (label[0, 0], label[4, 4]) == (2, 1)
    kept = json.loads((root / "splits.json").read_text())
    assert {split: list(part) for split, part in found.items()} == kept
    (root / "labels.txt").write_text("__ignore__\n_background_\nzebra\nbox\n")
    source, found = read(f"labelme:{root}")
    assert source.info.classes == ("background", "zebra", "box")


def test_a_label_may_be_the_background(labelme, read):
    outlines = {
        "zebra": [[0, 0], [15, 0], [15, 11], [0, 11]],
        "Background": [[0, 0], [5, 0], [0, 5]],
    }
    root = labelme("a", [outline(*pair) for pair in outlines.items()])
    for listed in ("", "_background_\nzebra\nBackground"):
        if listed:
            (root / "labels.txt").write_text(listed)
        source, found = read(f"labelme:{root}")
        assert source.info.classes == ("Background", "zebra")
        assert [found["train"]["a"][0, 0], found["train"]["a"][9, 9]] == [0, 1]


def test_labelme_in_folders_of_splits(labelme, tmp_path, read):
    (tmp_path / "Train").mkdir()
    (tmp_path / "val").mkdir()
    labelme("Train/a", [outline("x", [[0, 0], [9, 0], [9, 9]])])
    root = labelme("val/b", [outline("x", [[0, 0], [9, 0], [9, 9]])])
    _, found = read(f"labelme:{root}")
    names = {split: list(part) for split, part in found.items()}
    assert names == {"train": ["Train/a"], "val": ["val/b"]}
    (root / "other").mkdir()
    labelme("other/c", [])
    labelme("d", [])
    with pytest.raises(data.DatasetError, match=r"(?s)\. holds 1 images.*other holds 1 images"):
        data.audit(f"labelme:{root}")


def test_a_mask_of_the_same_name_is_not_the_image_of_labelme(labelme, draw):
    root = labelme("a", [outline("x", [[0, 0], [9, 0], [9, 9]])], imagePath="a.tif")
    draw("a.tif")
    assert data.open_source(f"labelme:{root}").files("train").images["a"].suffix == ".tif"


def test_masks_points_and_lines_of_labelme(labelme, read):
    mask = np.zeros((4, 5), bool)
    mask[1:, 2:] = True
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    encoded = base64.b64encode(file.getvalue()).decode()
    shape = outline("x", [[2.6, 1.6], [7, 5]], "mask")
    point, line = outline("x", [[9, 9]], "point"), outline("x", [[0, 0], [9, 9]], "linestrip")
    root = labelme("a", [{**shape, "mask": encoded}, point, line])
    _, found = read(f"labelme:{root}")
    expected = np.zeros((12, 16), np.uint8)
    expected[2:6, 3:8] = mask
    np.testing.assert_array_equal(found["train"]["a"], expected)
    for broken in ("", "no base64", base64.b64encode(b"no image").decode()):
        root = labelme("a", [{**shape, "mask": broken}])
        with pytest.raises(data.DatasetError, match=r"a\.json: "):
            data.audit(f"labelme:{root}")


def test_other_values_in_labelme_are_faults(labelme):
    shape = outline("dog", [[0, 0], [9, 0], [9, 9]])
    root, found = labelme("a", [shape]), {}
    content = json.loads((root / "a.json").read_text())
    for path in changed(content):
        (root / "a.json").write_text(json.dumps(content))
        found[str(path)] = raised("labelme", root)
    assert {path: error for path, error in found.items() if error} == {}
    assert len(found) > 100


def test_all_faults_of_labelme_are_named(labelme):
    labelme("a", [outline("x", [[0, 0], [1, 1]])])
    labelme("b", [outline("x", [[0, 0], [1, 1], [1, 0]], "circle")])
    labelme("c", [], imageHeight=None)
    root = labelme("d", [outline("x", [[0, 0], [1, 1], [1, 0]])], imagePath="../../secret.png")
    (root / "d.jpg").unlink()
    (root.parent / "secret.png").write_bytes(b"")
    with pytest.raises(data.DatasetError) as caught:
        data.audit(f"labelme:{root}")
    message = str(caught.value)
    for text in ("a.json: an outline of 2", "b.json: circle of 3", "c.json: imageHeight", "d.json"):
        assert text in message
    (root / "a.json").write_text("{")
    with pytest.raises(data.DatasetError, match=r"a\.json: is not readable as JSON"):
        data.audit(f"labelme:{root}")


XML = """<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version>
<meta><job><labels><label><name>road</name><color>#102030</color></label>
<label><name>Background</name></label></labels></job></meta>
<image id="0" name="a.jpg" width="16" height="12" {subset}>
<box label="road" xtl="8" ytl="0" xbr="15" ybr="11" z_order="0"/>
<mask label="Background" rle="1,2,3,2" left="8" top="2" width="4" height="2" z_order="2"/>
<polygon label="sign" points="8,0;11,0;11,11;8,11" z_order="1"/><points label="road" points="1,1"/>
</image></annotations>"""


def test_cvat(tmp_path, draw, read):
    draw("images/a.jpg")
    (tmp_path / "annotations.xml").write_text(XML.format(subset='subset="Train"'))
    source, found = read(f"cvat:{tmp_path}")
    assert source.info.classes == ("Background", "road", "sign")
    assert source.info.colors[1] == (16, 32, 48)
    label = found["train"]["a.jpg"]
    assert (label[0, 0], label[5, 13], label[5, 9]) == (0, 1, 2)
    np.testing.assert_array_equal(label[2:4, 8:12], [[2, 0, 0, 1], [2, 2, 0, 0]])
    assert not (tmp_path / "splits.json").exists()


@pytest.mark.parametrize("degrees", [90, 450, -270])
def test_rotated_shapes_of_cvat(tmp_path, draw, read, degrees):
    draw("images/a.jpg")
    shapes = (
        f'<box label="road" xtl="0" ytl="4" xbr="8" ybr="6" rotation="{degrees}"/>'
        f'<ellipse label="sign" cx="12" cy="6" rx="4" ry="1" rotation="{degrees}"/></image>'
    )
    xml = XML.format(subset='subset="Train"').replace("</image>", shapes)
    start, end = xml.index('<box label="road" xtl="8"'), xml.index("<points")
    (tmp_path / "annotations.xml").write_text(xml[:start] + xml[end:])
    _, found = read(f"cvat:{tmp_path}")
    label = found["train"]["a.jpg"]
    expected = np.zeros((12, 16))
    expected[1:9, 3:5] = 1
    np.testing.assert_array_equal(label == 1, expected)
    assert set(np.argwhere(label == 2)[:, 1]) == {11, 12}
    assert set(np.argwhere(label == 2)[:, 0]) >= set(range(3, 9))


def test_points_are_rotated_clockwise():
    points = [(0.1, 0.7), (10.3, 0.7), (10.3, 2.9), (0.1, 2.9)]
    assert rotated(points, 0) == points  # not rounded
    turned = rotated([(0, 0), (4, 0), (4, 2), (0, 2)], 30)
    right = np.subtract(turned[1], turned[0]) / 4
    np.testing.assert_allclose(right, [np.cos(np.pi / 6), np.sin(np.pi / 6)])
    np.testing.assert_allclose(np.mean(turned, 0), [2, 1])


@pytest.mark.parametrize("kind", ["coco", "labelme", "cvat"])
def test_another_audit_sees_repaired_annotations(kind, coco, labelme, tmp_path, draw):
    if kind == "coco":
        coco("instances", [an_object(3, LARGE)])
        path, change = tmp_path / "annotations/instances_train2017.json", ("[[", "[[0,")
    elif kind == "labelme":
        labelme("a", [outline("x", [[0, 0], [9, 0], [9, 9]])])
        path, change = tmp_path / "a.json", ("[9, 9]", "[9]")
    else:
        draw("images/a.jpg")
        path, change = tmp_path / "annotations.xml", ('points="8,0;', 'points="8;')
        path.write_text(XML.format(subset='subset="Train"'))
    right = path.read_text()
    path.write_text(right.replace(*change))
    assert path.read_text() != right
    source = data.open_source(f"{kind}:{tmp_path}")
    with pytest.raises(data.DatasetError, match="bad annotation"):
        data.audit(source)
    path.write_text(right)
    assert data.audit(source).splits["train"].images == 1


@pytest.mark.parametrize(
    "name, subsets, files, expected",
    [
        ("a.jpg", ["Train"], ["images/Train/a.jpg"], {"train": ["a.jpg"]}),
        ("a.jpg", ["Train"], ["images/train/a.jpg"], {"train": ["a.jpg"]}),
        ("a.jpg", ["Train"], ["images/a.jpg"], {"train": ["a.jpg"]}),
        ("f_0", [""], ["images/f_0.PNG"], {"train": ["f_0"]}),
        (
            "f_0",
            ["Train", "Validation"],
            ["images/Train/f_0.PNG", "images/Validation/f_0.png"],
            {"train": ["Train/f_0"], "val": ["Validation/f_0"]},
        ),
        (
            "a.jpg",
            ["Train", "Validation"],
            ["images/Train/a.jpg", "images/validation/a.jpg"],
            {"train": ["Train/a.jpg"], "val": ["Validation/a.jpg"]},
        ),
    ],
)
def test_subsets_and_frames_of_cvat(tmp_path, draw, read, name, subsets, files, expected):
    drawn = [draw(path, np.full((12, 16, 3), 50 * k)) for k, path in enumerate(files)]
    xml = XML.replace("a.jpg", name)
    head, image, end = xml.partition("<image")[0], xml[xml.index("<image") :], "</annotations>"
    images = [image.removesuffix(end).format(subset=f'subset="{one}"') for one in subsets]
    (tmp_path / "annotations.xml").write_text("".join([head, *images, end]))
    source, found = read(f"cvat:{tmp_path}")
    assert {split: list(part) for split, part in found.items()} == expected
    for split, pixels in zip(source.splits, drawn, strict=True):
        (image, _), *_ = source.dataset(split).as_numpy_iterator()
        np.testing.assert_array_equal(image, pixels)


def test_a_file_stands_for_one_image_of_cvat(tmp_path, draw):
    draw("images/a.jpg")
    xml = XML.format(subset='subset="Train"')
    for subset, message in (
        ("Train", "two images have the name Train/a.jpg"),
        ("Test", "images/Train/a.jpg, which annotations.xml lists, is missing"),
        ("../Test", "outside the folder"),
    ):
        more = f'<image name="a.jpg" subset="{subset}" width="16" height="12"/></annotations>'
        (tmp_path / "annotations.xml").write_text(xml.replace("</annotations>", more))
        with pytest.raises(data.DatasetError, match=message):
            data.audit(f"cvat:{tmp_path}")


@pytest.mark.parametrize(
    "change, message",
    [
        (("<annotations>", '<!DOCTYPE x [<!ENTITY e "x">]><annotations>'), "document type"),
        (('name="a.jpg"', 'name="../a.jpg"'), "outside the folder"),
        (("</annotations>", ""), "no element found"),
        (('width="16"', 'width="x"'), "invalid literal"),
        (('rle="1,2,3,2"', 'rle="1,2"'), "a.jpg: runs of 3 pixels"),
        (('points="8,0;11,0', 'points="8;11,0'), "a.jpg: not enough values"),
        (('name="a.jpg"', 'name="b.jpg"'), "images/b.jpg, which annotations.xml lists, is missing"),
    ],
)
def test_damaged_cvat(tmp_path, draw, change, message):
    draw("images/a.jpg")
    (tmp_path / "annotations.xml").write_text(XML.format(subset="").replace(*change))
    with pytest.raises(data.DatasetError, match=message):
        data.audit(f"cvat:{tmp_path}")


def test_entities_in_another_encoding_are_refused(tmp_path, draw):
    draw("images/a.jpg")
    xml = XML.format(subset="").replace("<annotations>", "<!DOCTYPE x><annotations>")
    content = xml.replace("utf-8", "utf-16").encode("utf-16")
    (tmp_path / "annotations.xml").write_bytes(content)
    with pytest.raises(data.DatasetError, match=r"annotations.xml: 'utf-8' codec"):
        data.open_source(f"cvat:{tmp_path}")
