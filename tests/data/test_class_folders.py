from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keras_deeplab import data


def write(root: Path, name: str, pixels: np.ndarray | None = None, **options) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels is None:
        pixels = np.random.default_rng(len(name)).integers(0, 256, (9, 13, 3), np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes, three images for training and two for validation."""
    for name in ("train/dog/b.png", "train/cat/z.jpg", "train/cat/a.bmp"):
        write(tmp_path, name)
    for name in ("val/cat/1.png", "val/dog/1.png"):
        write(tmp_path, name)
    return tmp_path


def numpy(dataset) -> list:
    return list(dataset.as_numpy_iterator())


def message(root: Path) -> str:
    with pytest.raises(data.DatasetError) as error:
        data.ClassFolders(root).audit()
    return str(error.value)


def test_folders_are_classes_in_their_order(root):
    source = data.ClassFolders(str(root))
    assert source.classes == ("cat", "dog")
    assert source.splits == ("train", "val")
    assert source.names("train") == ["cat/a.bmp", "cat/z.jpg", "dog/b.png"]
    assert source.names("val") == ["cat/1.png", "dog/1.png"]
    assert source.audit() == {"train": {"cat": 2, "dog": 1}, "val": {"cat": 1, "dog": 1}}
    pairs = numpy(source.dataset("train"))
    assert [int(label) for _, label in pairs] == [0, 0, 1]
    assert {image.dtype for image, _ in pairs} == {np.dtype("uint8")}
    assert pairs[0][1].dtype == np.int32
    for name, (image, _) in zip(source.names("train"), pairs, strict=True):
        if not name.endswith("jpg"):
            expected = np.asarray(Image.open(root / "train" / name))
            np.testing.assert_array_equal(image, expected)
    assert int(source.dataset("train").cardinality()) == 3


def test_the_order_of_val_is_that_of_train(tmp_path):
    """Labels follow the class, not the place of the folder among those of val."""
    for name in ("train/a/1.png", "train/b/1.png", "train/c/1.png"):
        write(tmp_path, name)
    for name in ("val/c/1.png", "val/a/1.png", "val/b/1.png", "val/b/2.png"):
        write(tmp_path, name)
    source = data.ClassFolders(tmp_path)
    labels = [int(label) for _, label in numpy(source.dataset("val"))]
    assert source.names("val") == ["a/1.png", "b/1.png", "b/2.png", "c/1.png"]
    assert labels == [0, 1, 1, 2]


def test_photographs_of_every_mode_become_rgb(root):
    grey = np.kron(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40, np.ones((8, 8), np.uint8))
    for mode in ("L", "LA", "RGBA", "P"):
        Image.fromarray(grey).convert(mode).save(root / "train" / "dog" / f"{mode}.png")
    source = data.ClassFolders(root)
    source.audit()
    pairs = zip(source.names("train"), numpy(source.dataset("train")), strict=True)
    found = {name: image for name, (image, _) in pairs}
    for mode in ("L", "LA", "RGBA", "P"):
        expected = np.repeat(grey[..., None], 3, -1)
        np.testing.assert_array_equal(found[f"dog/{mode}.png"], expected)


def test_what_systems_leave_behind_is_passed_over(root):
    for name in (".DS_Store", "train/.hidden/a.png", "train/cat/._a.bmp", "val/Thumbs.db"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"left behind")
    (root / "train" / "dog" / "B.PNG").write_bytes((root / "train/dog/b.png").read_bytes())
    source = data.ClassFolders(root)
    assert source.classes == ("cat", "dog")
    assert source.audit()["train"] == {"cat": 2, "dog": 2}


def test_one_error_lists_everything_that_is_wrong(root):
    write(root, "val/bird/1.png")
    (root / "train" / "fish").mkdir()
    (root / "train" / "cat" / "sub").mkdir()
    (root / "train" / "cat" / "notes.txt").write_text("mine")
    (root / "train" / "cat" / "cut.jpg").write_bytes(
        (root / "train" / "cat" / "z.jpg").read_bytes()[:200]
    )
    (root / "val" / "dog" / "none.png").write_text("no picture")
    write(root, "train/lost.png")
    said = message(root)
    assert said.splitlines()[0].endswith("8 faults of 7 kinds")
    for kind, count, *found in (
        ("unknown class folder", 1, "val/bird"),
        ("missing class folder", 1, "val/fish"),
        ("empty class", 1, "train/fish"),
        ("file outside a class", 1, "train/lost.png"),
        ("unsupported file", 2, "train/cat/notes.txt", "train/cat/sub"),
        ("unreadable file", 1, "val/dog/none.png: 10 bytes that are no image"),
        ("truncated file", 1, "train/cat/cut.jpg: 200 bytes"),
    ):
        assert f"- {kind} ({count}); expected: " in said
        for name in found:
            assert f"    {name}" in said
    # Without decoding, the names alone are looked at.
    for use in (
        lambda source: source.classes,
        lambda source: source.names("val"),
        lambda source: source.dataset("train"),
    ):
        with pytest.raises(data.DatasetError, match=r"6 faults of 5 kinds"):
            use(data.ClassFolders(root))


def test_ten_of_each_kind_are_named(root):
    for index in range(14):
        (root / "train" / "cat" / f"{index:02}.png").write_bytes(b"no picture")
        (root / "train" / "dog" / f"{index:02}.txt").write_text("")
    said = message(root)
    assert "unreadable file (14)" in said
    assert "unsupported file (14)" in said
    assert said.count("train/cat/") == said.count("train/dog/") == 10
    assert said.count("... and 4 more") == 2


def test_folders_that_are_not_there(root, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    said = message(empty)
    assert "missing folder (2)" in said
    assert str(empty / "train") in said
    assert str(empty / "val") in said
    assert "missing folder (2)" in message(root / "nowhere")
    (root / "val").rename(root / "validation")
    said = message(root)
    assert "missing folder (1)" in said
    assert str(root / "val") in said
    assert "class folder" not in said


def test_accents_in_either_form_are_one_class(root):
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    (root / "train" / "cat").rename(root / "train" / composed)
    (root / "val" / "cat").rename(root / "val" / decomposed)
    source = data.ClassFolders(root)
    assert source.classes == (composed, "dog")
    assert source.audit()["val"] == {composed: 1, "dog": 1}
    write(root, f"train/{decomposed}/more.png")
    if len(list((root / "train").iterdir())) == 3:  # some file systems keep one
        assert data.ClassFolders(root).audit()["train"] == {composed: 3, "dog": 1}


def test_file_names_that_are_not_utf8_are_named(root):
    try:
        os.rename(root / "val/cat/1.png", os.fsencode(root) + b"/val/cat/\xe9.png")
    except OSError:
        pytest.skip("this file system holds no such name")
    assert "file name not UTF-8 (1)" in message(root)
    assert "val/cat/\\udce9.png" in message(root)


def test_one_class_is_too_few(root):
    for split, name in (("train", "b.png"), ("val", "1.png")):
        (root / split / "dog" / name).unlink()
        (root / split / "dog").rmdir()
    assert "too few classes (1); expected: two or more" in message(root)
    (root / "train" / "cat" / "a.bmp").unlink()
    (root / "train" / "cat" / "z.jpg").unlink()
    said = message(root)
    assert "empty class (1)" in said
    assert "    train/cat" in said


def test_unknown_splits_are_refused(root):
    for source in (data.ClassFolders(root), data.ShapeClasses()):
        for use in (source.names, source.dataset):
            with pytest.raises(ValueError, match=r"`split` .*'train', 'val'.*'test'"):
                use("test")
