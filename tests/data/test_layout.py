"""What is said about folders that are no data set, and whether the moves shown make one."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keras_deeplab import data


def write(path: Path, label: bool = False) -> None:
    """Writes an image, or a label map, into folders that are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.eye(6, dtype=np.uint8) if label else np.zeros((6, 6, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def write_pairs(root: Path, images: str, labels: str, count: int = 2) -> None:
    """Writes pairs by patterns such as `images/*.jpg`."""
    for index in range(count):
        write(root / images.replace("*", f"a {index}.b"))
        write(root / labels.replace("*", f"a {index}.b"), label=True)


def refusal(root: Path) -> str:
    """The one error that all ways of opening the folder raise."""
    said = set()
    for use in (data.Folder, data.open_source, data.audit):
        with pytest.raises(data.DatasetError, match="missing folder") as caught:
            use(root)
        said.add(str(caught.value))
    (text,) = said
    assert "there is no folder train, val or test" in text
    assert "expected: SPLIT/images and SPLIT/labels" in text
    return text


@pytest.mark.parametrize(
    "images, labels, split",
    [
        ("images/*.jpg", "labels/*.png", "train"),
        ("JPEGImages/*.JPG", "SegmentationClass/*.png", "train"),
        ("training/img/*.jpg", "training/mask/*.png", "train"),
        ("Validation/images/*.bmp", "Validation/labels/*.png", "val"),
        ("images/training/*.jpg", "annotations/training/*.png", "train"),
        ("leftImg8bit/val/*.png", "gtFine/val/*.png", "val"),
    ],
)
def test_moves_that_are_shown_make_a_data_set(tmp_path, images, labels, split):
    root = tmp_path / "it's mine"
    write_pairs(root, images, labels)
    lines = refusal(root).split("In this folder, move\n")[1].splitlines()
    moves = [line.strip().split(" to ") for line in lines if "fifth" not in line]
    assert len(moves) == 2
    for source, target in moves:
        (root / target).parent.mkdir(exist_ok=True, parents=True)
        (root / source).rename(root / target)
    for folder in (root / "training", root / "Validation"):
        if folder.exists():
            folder.rmdir()  # empty now
    assert data.audit(root).splits[split].images == 2
    assert any("then about a fifth" in line for line in lines) == (split == "train")


@pytest.mark.parametrize("given", ["train", "Val", "train/images", "train/Labels"])
def test_a_part_of_a_data_set_leads_to_the_whole(tmp_path, monkeypatch, given):
    for split, labels in (("train", "Labels"), ("Val", "labels")):
        write_pairs(tmp_path / "x", f"{split}/images/*.jpg", f"{split}/{labels}/*.png", 1)
    assert f"give {tmp_path / 'x'} instead" in refusal(tmp_path / "x" / given)
    monkeypatch.chdir(tmp_path / "x" / given)
    assert f"give {tmp_path / 'x'} instead" in refusal(Path("."))
    # Through a link the folder around it is another.
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "mine").symlink_to(tmp_path / "x" / given)
    assert f"{tmp_path / 'y' / 'mine'} holds" in refusal(tmp_path / "y" / "mine")


def test_a_folder_above_leads_to_the_data_set(tmp_path):
    write_pairs(tmp_path, "x/train/images/*.jpg", "x/train/labels/*.png", 1)
    write_pairs(tmp_path, "y/VAL/images/*.jpg", "y/VAL/labels/*.png", 1)
    said = refusal(tmp_path)
    assert "holds the folders x, y" in said
    assert f"Give {tmp_path / 'x'} or {tmp_path / 'y'} instead" in said


@pytest.mark.parametrize(
    "name, files, found",
    [
        ("test/images", [], "holds nothing"),
        ("some/val", ["a.jpg", "b.jpg", "c.png"], "holds 2 .jpg files, 1 .png file"),
        ("some/val", ["cat/a.jpg", "dog/a.jpg"], "holds the folders cat, dog"),
        ("test/images", ["images/a.jpg"], "holds the folder images"),
        ("some/val", ["images/x/a.jpg", "masks/x/a.png"], "holds the folders images, masks"),
    ],
)
def test_what_cannot_be_guessed_is_described(tmp_path, name, files, found):
    root = tmp_path / name  # no part of a data set by its name alone
    root.mkdir(parents=True)
    for file in files:
        write(root / file)
    said = refusal(root)
    assert found in said
    assert "Put images into train/images and val/images" in said


@pytest.mark.parametrize("split, images", [("train", "IMAGES"), ("Train", "Images")])
def test_case_does_not_matter(tmp_path, split, images):
    write_pairs(tmp_path, f"{split}/{images}/*.jpg", f"{split}/Labels/*.png")
    (tmp_path / "Dataset.JSON").write_text('{"classes": ["far", "near"]}')
    source = data.open_source(str(tmp_path))
    assert source.splits == ("train",)
    assert source.names("train") == ["a 0.b", "a 1.b"]
    assert source.info.classes == ("far", "near")
    assert data.audit(source).splits["train"].images == 2


@pytest.mark.parametrize(
    "one, other",
    [("train", "Train"), ("train/images", "train/Images"), ("train/labels", "train/LABELS")],
)
def test_folders_that_differ_in_case_alone_are_an_error(tmp_path, one, other):
    write_pairs(tmp_path, "train/images/*.jpg", "train/labels/*.png")
    if (tmp_path / one.upper()).exists():
        pytest.skip("this file system is not case-sensitive")
    (tmp_path / other).mkdir()
    source = data.Folder(tmp_path)
    for use in (data.audit, lambda source: source.names("train")):
        with pytest.raises(data.DatasetError, match="differ only in case") as caught:
            use(source)
        assert re.search(rf"{other}, {one}", str(caught.value))


def test_two_dataset_json_are_an_error(tmp_path):
    write_pairs(tmp_path, "train/images/*.jpg", "train/labels/*.png")
    (tmp_path / "dataset.json").write_text("{}")
    (tmp_path / "Dataset.json").write_text("{}")
    if len(list(tmp_path.iterdir())) == 2:
        pytest.skip("this file system is not case-sensitive")
    with pytest.raises(data.DatasetError, match=r"Dataset.json and dataset.json differ only"):
        data.audit(tmp_path)


def test_missing_parts_of_a_split_say_what_is_there(tmp_path):
    write_pairs(tmp_path, "train/images/*.jpg", "train/masks/*.png")
    write_pairs(tmp_path, "validation/images/*.jpg", "validation/labels/*.png")
    with pytest.raises(data.DatasetError) as caught:
        data.audit(tmp_path)
    assert "train/labels is not there; train holds the folders images, masks" in str(caught.value)
    assert "validation; rename it to val" in str(caught.value)
    with pytest.raises(ValueError, match=r"\('train',\).*'val'. .* holds the folders train, val"):
        data.Folder(tmp_path).names("val")


def test_names_and_folders_are_told_apart(tmp_path):
    assert isinstance(data.open_source("shapes"), data.Shapes)
    with pytest.raises(ValueError, match=r"an existing folder .*Received: name='.*nowhere'"):
        data.open_source(tmp_path / "nowhere")
    with pytest.raises(data.DatasetError, match="is not a folder"):
        data.Folder(tmp_path / "nowhere")
