"""Folders that are not a data set, and the names of files and folders."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keras_deeplab import data


def write_pairs(root: Path, images: str, labels: str, count: int = 2) -> None:
    """Writes pairs by patterns such as `images/*.jpg`."""
    for index in range(count):
        for pattern, pixels in (
            (images, np.zeros((6, 6, 3), np.uint8)),
            (labels, np.eye(6, dtype=np.uint8)),
        ):
            path = root / pattern.replace("*", f"a {index}.b")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)


def refusal(root: Path) -> str:
    """The one error that all ways of opening the folder raise."""
    found = set()
    for use in (data.Folder, data.open_source, data.audit):
        with pytest.raises(data.DatasetError, match="there is no folder train, val") as caught:
            use(root)
        found.add(str(caught.value))
    (text,) = found
    return text


@pytest.mark.parametrize("given", ["train", "Val", "train/images", "train/Labels"])
def test_a_part_of_a_data_set_leads_to_the_whole(tmp_path, monkeypatch, given):
    for split, labels in (("train", "Labels"), ("Val", "labels")):
        write_pairs(tmp_path / "x", f"{split}/images/*.jpg", f"{split}/{labels}/*.png", 1)
    assert f"Give {tmp_path / 'x'} instead" in refusal(tmp_path / "x" / given)
    monkeypatch.chdir(tmp_path / "x" / given)
    assert f"Give {tmp_path / 'x'} instead" in refusal(Path("."))


@pytest.mark.parametrize(
    "files, given",
    [
        (["annotations/instances_train2017.json", "train2017/a.jpg"], "coco:{}"),
        (["annotations/instances_default.json", "images/a.jpg"], "coco:{}"),
        (["dataset_info.json", "features.json"], "tfds:{}"),
        (["result.json", "images/a.jpg"], "coco:{}"),
        (["annotations.xml", "images/a.jpg"], "cvat:{}"),
        (
            [
                "ImageSets/Segmentation/train.txt",
                "ImageSets/Main/train.txt",
                "JPEGImages/a.jpg",
                "SegmentationClass/a.png",
            ],
            "voc:{}",
        ),
        (["a.jpg", "a.json", "b.png"], "labelme:{}"),
        (["pairs.csv", "photos/a.jpg", "maps/a.png"], "{}/pairs.csv"),
    ],
)
def test_a_data_set_of_another_format_is_named(tmp_path, files, given):
    root = tmp_path / "x"
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    if "annotations.xml" in files:
        (root / "annotations.xml").write_text("<?xml version='1.0'?><annotations></annotations>")
    if "pairs.csv" in files:
        (root / "pairs.csv").write_text("image;label\nphotos/a.jpg;maps/a.png")
    (root / "scores.csv").write_text("name,score\na,1")
    first = next((root / name for name in files if name.endswith(".jpg")), root).relative_to(root)
    (root / "via.csv").write_text(f"filename,size,attributes,shape\n{first},9,{{}},polygon")
    assert f"Give {given.format(root)} instead" in refusal(root)


def test_a_data_set_of_another_format_with_splits_is_named(tmp_path):
    for name in ("_annotations.coco.json", "a.jpg"):
        (tmp_path / "train").mkdir(exist_ok=True)
        (tmp_path / "train" / name).touch()
    with pytest.raises(data.DatasetError, match=f"train/images is .* give coco:{tmp_path} instead"):
        data.audit(tmp_path)


@pytest.mark.parametrize(
    "name, advice",
    [
        ("nothing", "There is no {}/nothing"),
        ("annotations.xml", "Give cvat:{}"),
        ("annotations/instances_train.json", "Give coco:{}"),
        ("splits.json", "Give {}"),
        ("cvat:{}/annotations.xml", "is not a folder; give {}"),
        ("coco:{}/annotations/instances_train.json", "is not a folder; give {}"),
    ],
)
def test_a_path_that_is_no_folder_leads_to_one(tmp_path, name, advice):
    (tmp_path / "annotations").mkdir()
    for file in ("annotations.xml", "annotations/instances_train.json", "splits.json"):
        (tmp_path / file).touch()
    (tmp_path / "annotations.xml").write_text("<annotations></annotations>")
    path = name.format(tmp_path) if ":" in name else str(tmp_path / name)
    with pytest.raises(ValueError, match=re.escape(advice.format(tmp_path)) + r"(\.|$)"):
        data.open_source(path)


def test_a_folder_above_leads_to_the_data_set(tmp_path):
    write_pairs(tmp_path, "x/train/images/*.jpg", "x/train/labels/*.png", 1)
    write_pairs(tmp_path, "y/VAL/images/*.jpg", "y/VAL/labels/*.png", 1)
    text = refusal(tmp_path)
    assert "holds x, y" in text
    assert f"Give {tmp_path / 'x'} or {tmp_path / 'y'} instead" in text


@pytest.mark.parametrize(
    "name, files, found",
    [
        ("test/images", [], "holds nothing"),
        ("some/val", [f"{index:02}.jpg" for index in range(11)], "holds 00.jpg, .*09.jpg, ...;"),
        ("some", ["img/train/a.jpg", "masks/train/a.png"], "holds img, masks"),
    ],
)
def test_other_folders_are_described(tmp_path, name, files, found):
    root = tmp_path / name  # no part of a data set by its name alone
    root.mkdir(parents=True)
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"")
    with pytest.raises(data.DatasetError, match=f"{found}.*Put images into train/images and val"):
        data.Folder(root)


@pytest.mark.parametrize("split, images", [("train", "IMAGES"), ("Train", "Images")])
def test_case_does_not_matter(tmp_path, split, images):
    write_pairs(tmp_path, f"{split}/{images}/*.jpg", f"{split}/Labels/*.png")
    (tmp_path / "Dataset.JSON").write_text('{"classes": ["far", "near"]}')
    source = data.open_source(str(tmp_path))
    assert source.splits == ("train",)
    assert source.names("train") == ["a 0.b", "a 1.b"]
    assert data.audit(source).info.classes == ("far", "near")


@pytest.mark.parametrize("name", ["train", "train/images", "train/labels", "dataset.json"])
def test_names_that_differ_in_case_alone_are_an_error(tmp_path, name):
    write_pairs(tmp_path, "train/images/*.jpg", "train/labels/*.png")
    other = str(Path(name).parent / Path(name).name.title())
    (tmp_path / "dataset.json").write_text("{}")
    if (tmp_path / other).exists():
        pytest.skip("requires a case-sensitive file system")
    if name == "dataset.json":
        (tmp_path / other).write_text("{}")
    else:
        (tmp_path / other).mkdir()
    with pytest.raises(data.DatasetError, match=f"{other}(,| and) {name} differ only in case"):
        data.audit(tmp_path)


def test_missing_parts_of_a_split_are_described(tmp_path):
    write_pairs(tmp_path, "train/images/*.jpg", "train/maps/*.png")
    (tmp_path / "validation").mkdir()
    with pytest.raises(data.DatasetError) as caught:
        data.audit(tmp_path)
    assert "train/labels is not there; train holds images, maps" in str(caught.value)
    assert "unknown split folder (1)" in str(caught.value)
    (tmp_path / "validation").rmdir()
    with pytest.raises(ValueError, match=r"`split` must be one of \('train',\).*split='val'"):
        data.Folder(tmp_path).names("val")


def test_the_folder_of_a_missing_split_is_named(tmp_path):
    write_pairs(tmp_path, "training/images/*.jpg", "training/labels/*.png")
    write_pairs(tmp_path, "val/images/*.jpg", "val/labels/*.png")
    with pytest.raises(data.DatasetError, match=r"unknown split folder \(1\)[^$]*training"):
        data.open_source(str(tmp_path)).check_split("train")


def test_names_and_folders_are_told_apart(tmp_path):
    assert isinstance(data.open_source("shapes"), data.Shapes)
    with pytest.raises(ValueError, match=r"an existing folder .*Received: name='.*nowhere'"):
        data.open_source(tmp_path / "nowhere")
    with pytest.raises(data.DatasetError, match="is not a folder"):
        data.Folder(tmp_path / "nowhere")
