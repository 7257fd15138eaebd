"""Classes that annotation tools list beside their label maps."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from keras_deeplab import data

LABELMAP = """# label:color_rgb:parts:actions
background:0,0,0::
road:128,64,128::
a:car, or van:0,0,142:wheel,door:parked
"""


def test_labelmap_of_cvat_gives_names_and_colours(tmp_path, write_pair):
    colors = np.array([[0, 0, 0], [128, 64, 128], [0, 0, 142]], np.uint8)
    labels = np.tile(np.arange(3, dtype=np.uint8), (8, 4))
    _, path = write_pair(tmp_path, "train", "a", labels)
    Image.fromarray(colors[labels]).save(path)
    (tmp_path / "labelmap.txt").write_text(LABELMAP)
    source = data.open_source(tmp_path)
    assert source.info.classes == ("background", "road", "a:car, or van")
    assert source.info.colors == tuple(map(tuple, colors.tolist()))
    np.testing.assert_array_equal(source.read_label("a", path), labels)


def test_classes_of_roboflow_are_those_of_the_folders_of_splits(tmp_path, write_pair):
    text = 'Pixel Value, Class\n0, background\n3, cat\n5, "dog, small"\n'
    for split, name in (("train", "a"), ("val", "b")):
        _, path = write_pair(tmp_path, split, name, np.full((4, 4), 3))
        (tmp_path / split / "_classes.csv").write_text(text)
    source = data.open_source(tmp_path)
    assert source.info.classes == ("background", "cat", "dog, small")
    np.testing.assert_array_equal(source.read_label("b", path), np.ones((4, 4)))
    (tmp_path / "val/_classes.csv").write_text("Pixel Value, Class\n0, background\n3, dog\n")
    with pytest.raises(data.DatasetError, match=r"train/_classes.csv, val/_classes.csv list"):
        data.audit(tmp_path)


@pytest.mark.parametrize(
    "name, text",
    [
        ("class_dict.csv", "name,r,g,b\nsky, 0,0,0\nroad,128, 64, 128\n"),
        ("class_dict.csv", "\ufeffclass,Red,Green,Blue\nsky, 0,0,0\nroad,128, 64, 128\n"),
        ("label_colors.txt", "0 0 0 sky\n128 64 128\troad\n"),
    ],
)
def test_names_and_colours_in_other_lists(tmp_path, write_pair, name, text):
    write_pair(tmp_path, "train", "a", np.eye(4))
    (tmp_path / name).write_text(text)
    info = data.open_source(tmp_path).info
    assert info.classes == ("sky", "road")
    assert info.colors == ((0, 0, 0), (128, 64, 128))


def test_grey_label_maps_of_listed_greys(tmp_path, write_pair):
    labels = np.eye(4, dtype=np.uint8)
    _, path = write_pair(tmp_path, "train", "a", 255 * labels)
    (tmp_path / "labelmap.txt").write_text("background:0,0,0::\nbuilding:255,255,255::\n")
    source = data.open_source(tmp_path)
    assert data.audit(source).info.classes == ("background", "building")
    np.testing.assert_array_equal(source.read_label("a", path), labels)
    write_pair(tmp_path, "train", "a", labels)
    np.testing.assert_array_equal(data.open_source(tmp_path).read_label("a", path), labels)


def test_class_names_of_labelme2voc(tmp_path, write_pair):
    write_pair(tmp_path, "train", "a", np.eye(4))
    (tmp_path / "class_names.txt").write_text("_background_\ncat\ndog\n", encoding="utf-8-sig")
    assert data.open_source(tmp_path).info.classes == ("_background_", "cat", "dog")


@pytest.mark.parametrize(
    "name, text",
    [
        ("labelmap.txt", "cat\ndog\nbird\n"),
        ("class_names.txt", "cat\ndog\nbird\n"),
        ("_classes.csv", "filename,cat,dog\na.jpg,1,0\n"),
        ("labelmap.txt", ""),
    ],
)
def test_files_of_other_programs_are_not_read(tmp_path, make_folder, blocks, name, text):
    folder = make_folder(blocks)
    (folder / "dataset.json").unlink()
    (folder / name).write_text(text)
    assert data.audit(folder).info.classes == ("class_0", "class_1", "class_2")


def test_dataset_json_goes_before_a_list(make_folder, blocks):
    folder = make_folder(blocks, classes=["a", "b", "c"])
    (folder / "labelmap.txt").write_text(LABELMAP)
    assert data.audit(folder).info.classes == ("a", "b", "c")


@pytest.mark.parametrize(
    "text, found",
    [
        (LABELMAP + "sky 1,2,3\n", "labelmap.txt has lines that do not name a class: sky 1,2,3"),
        (LABELMAP + "sky:1,2,300::\n", '"colors" must list'),
        (LABELMAP + "road:1,2,3::\n", '"classes" must list'),
    ],
)
def test_malformed_lists_are_faults(make_folder, blocks, text, found):
    folder = make_folder(blocks)
    (folder / "dataset.json").unlink()
    (folder / "labelmap.txt").write_text(text)
    with pytest.raises(data.DatasetError, match=f"bad class list(.|\n)*{found}"):
        data.audit(folder)
