from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keras_deeplab import data, losses

NAMED = {"classes": ["ground", "cell"]}
THREE = {"classes": ["a", "b", "c"]}


@pytest.fixture
def clean(tmp_path, write_pair, blocks):
    for split, count in (("train", 11), ("val", 2)):
        for index in range(count):
            write_pair(tmp_path, split, f"{index:02}", blocks)
    return tmp_path


def faults_of(source, splits=None):
    """The faults that the audit finds, by their kind, and the error's text."""
    with pytest.raises(data.DatasetError) as caught:
        data.audit(source, splits)
    return {fault.kind: fault for fault in caught.value.faults}, str(caught.value)


def change_masks(root, change):
    for path in root.rglob("labels/*.png"):
        Image.fromarray(change(np.array(Image.open(path))).astype(np.uint8)).save(path)


def to_jpeg(path):
    Image.open(path).save(path.with_suffix(".jpg"))
    path.unlink()
    return path.with_suffix(".jpg")


def test_an_audit_of_the_same_source_sees_what_was_repaired(
    clean, write_settings, write_pair, blocks
):
    write_settings(clean, classes="ground")
    write_pair(clean, "train", "02", np.where(blocks == 2, 77, blocks))
    (clean / "train/labels/04.png").unlink()
    source = data.Folder(clean)
    assert set(faults_of(source)[0]) == {"bad dataset.json", "image without label"}
    write_settings(clean, **THREE)
    write_pair(clean, "train", "04", blocks)
    assert set(faults_of(source)[0]) == {"label value out of range"}
    write_pair(clean, "train", "02", blocks)
    assert data.audit(source).info.classes == ("a", "b", "c")


def test_all_kinds_of_faults_at_once(clean, write_settings):
    train, val = clean / "train", clean / "val"
    write_settings(clean, **THREE)
    label = np.array(Image.open(train / "labels/00.png"))
    label[0, :5] = 77
    Image.fromarray(label).save(train / "labels/00.png")
    Image.new("RGB", (30, 24)).save(train / "images/01.png")
    (train / "labels/02.png").unlink()
    (train / "images/03.png").unlink()
    (train / "images/04.png").write_bytes(b"no image at all")
    cut = to_jpeg(train / "images/05.png")
    cut.write_bytes(cut.read_bytes()[: int(0.6 * cut.stat().st_size)])
    Image.open(train / "labels/06.png").convert("RGB").save(train / "labels/06.png")
    Image.open(train / "images/07.png").save(train / "images/07.bmp")
    (train / "images/notes.txt").write_text("seen")
    to_jpeg(train / "labels/08.png")
    Image.open(train / "images/09.png").convert("P").save(train / "images/09.bmp")
    (train / "images/09.png").unlink()
    shutil.rmtree(val)
    (val / "images").mkdir(parents=True)
    (val / "labels").mkdir()
    (clean / "test/images").mkdir(parents=True)
    (clean / "valid/images").mkdir(parents=True)
    found, text = faults_of(clean)
    expected = {
        "label value out of range": "train/00: 77 (5 pixels)",
        "sizes differ": "train/01: image 30x24, label map 32x24",
        "image without label": "train/images/02.png",
        "label without image": "train/labels/03.png",
        "unreadable file": "train/images/04.png: 15 bytes of an unknown format",
        "truncated file": "train/images/05.jpg",
        "label map not one-channel": "train/labels/06.png: mode RGB",
        "duplicate name": "train/images: 07.bmp, 07.png",
        "unsupported file": "train/images/notes.txt",
        "JPEG label map": "train/labels/08.jpg",
        "image of unsupported mode": "train/images/09.bmp: BMP of mode P",
        "empty split": "val: no images and no label maps",
        "missing folder": "test/labels is not there",
        "unknown split folder": "valid",
    }
    assert found.keys() == expected.keys()
    for kind, start in expected.items():
        assert len(found[kind].found) == 1, found[kind]
        assert found[kind].found[0].startswith(start)
        assert start in text
        assert found[kind].expected in text
    assert "0..2, ignored: 255" in found["label value out of range"].expected
    assert ": 14 faults\n" in text


def test_bad_settings_do_not_hide_other_faults(clean, write_settings):
    write_settings(clean, clases=[])
    (clean / "train/images/03.png").unlink()
    assert faults_of(clean)[0].keys() == {"bad dataset.json", "label without image"}


def test_first_ten_are_listed_and_all_counted(clean):
    for path in (clean / "train/images").iterdir():
        path.write_bytes(b"")
    found, message = faults_of(clean)
    assert "unreadable file (11)" in message
    assert "... and 1 more" in message
    assert message.count("train/images/") == 10
    assert len(found["unreadable file"].found) == 11
    assert list(data.audit(clean, ["val"]).splits) == ["val"]  # without faults
    with pytest.raises(ValueError, match="test"):
        data.audit(clean, ["test"])


def test_report_counts_pixels(clean, write_pair, write_settings):
    write_pair(clean, "val", "wide", np.zeros((10, 60), np.uint8))
    write_settings(clean, classes=["a", "b", "c", "d"])
    for name in ("Thumbs.db", ".DS_Store", "desktop.ini", "._00.png"):
        (clean / "train/images" / name).write_bytes(b"x")
    report = data.audit(str(clean))
    train, val = report.splits["train"], report.splits["val"]
    assert (train.images, val.images) == (11, 3)
    assert train.class_share == pytest.approx((3 / 12, 4 / 12, 4 / 12, 0))
    assert train.ignored_share == pytest.approx(1 / 12)
    assert train.where_present == pytest.approx((3 / 11, 4 / 11, 4 / 11, 0))
    assert val.where_present[0] == pytest.approx((2 * 192 + 600) / (2 * 704 + 600))
    assert (val.smallest, val.largest) == ((10, 32), (24, 60))
    assert "train: no pixel of d" in report.warnings
    for text in ("train: 11 images, 32x24\n", "val: 3 images, 32x10 to 60x24\n", "33.33%"):
        assert text in str(report)


def test_class_weights_are_those_of_the_training(clean, write_pair, write_settings):
    write_settings(clean, classes=["a", "b", "c", "rare", "absent"])
    label = np.zeros((24, 32), np.uint8)
    label[0, 0] = 3
    write_pair(clean, "train", "rare", label)
    report = data.audit(clean)
    part = report.splits["train"]
    expected = losses.shares_to_weights(part.class_share, part.where_present)
    assert report.class_weights == pytest.approx(expected)
    assert report.class_weights[3:] == (10, 0)


def test_scales_cover_the_sizes_of_the_validation(tmp_path, write_pair):
    root = tmp_path
    for split, sides in (("train", (24, 32)), ("val", (96, 128))):
        for name in "ab":
            write_pair(root, split, name, np.eye(*sides, dtype=np.uint8))
    report = data.audit(root)
    assert report.scales == (0.5, 8.0) == tuple(report.to_dict()["scales"])
    assert data.audit(root, ["val"]).scales == (0.5, 2.0)


def test_palettes_that_disagree_are_warned_of(clean, write_pair, blocks):
    for name, color in (("x", (1, 1, 1)), ("y", (2, 2, 2))):
        palette = [(0, 0, 0), color, (5, 5, 5), *[(0, 0, 0)] * 253]
        write_pair(clean, "train", name, blocks, palette=palette)
    (warning,) = data.audit(clean).warnings
    assert "train/labels/x.png and train/labels/y.png have different colours" in warning


@pytest.mark.parametrize("settings", [{}, NAMED])
def test_foreground_of_255_beside_stray_pixels_is_never_ignored(
    make_folder, write_settings, settings
):
    label = np.zeros((60, 60), np.uint8)
    label[:12, :15] = 255  # 5 %
    label[-1, -1] = 1
    root = make_folder(label, **settings)
    found, text = faults_of(root)
    assert found.keys() == {"classes unclear"}
    assert "180 pixels (5.00%) are ignored (255)" in text
    assert '"values": [0, 1, 255]' in text
    # Both readings are taken where they are written down.
    for content, classes in (
        (NAMED | {"values": [0, 255], "ignore_label": [1]}, (0, 255)),
        (NAMED | {"ignore_label": 255}, (0, 1)),
    ):
        write_settings(root, **content)
        part = data.audit(root).splits["train"]
        assert part.class_share == pytest.approx([(label == value).mean() for value in classes])


def test_masks_of_one_class_and_255_may_stand_in_one_split(make_folder, write_pair):
    root = make_folder([[0, 255, 0]], **NAMED)
    write_pair(root, "val", "b", np.array([[0, 255, 1]]))
    assert data.audit(root, ["train"]).splits["train"].images == 1
    assert data.audit(root).info.num_classes == 2


@pytest.mark.parametrize(
    "settings, kind",
    [
        ({"ignore_label": [0, 2, 255]}, "classes unclear"),
        (NAMED | {"values": [7, 8], "ignore_label": [0, 1, 2, 255]}, "nothing labelled"),
        (NAMED | {"values": [1, 8], "ignore_label": [0, 2, 255]}, "classes unclear"),
    ],
)
def test_masks_that_leave_less_than_two_classes_are_an_error(clean, write_settings, settings, kind):
    write_settings(clean, **settings)
    assert faults_of(clean)[0].keys() == {kind}


def test_splits_of_ignored_pixels(clean, write_pair):
    write_pair(clean, "test", "a", np.full((24, 32), 255, np.uint8))  # as published ones are
    warnings = data.audit(clean).warnings
    assert "test: 1 of 1 label maps hold only ignored pixels" in warnings
    change_masks(clean / "val", lambda mask: np.full_like(mask, 255))
    for splits in (None, ["val"]):
        found, text = faults_of(clean, splits)
        assert found.keys() == {"nothing labelled"}
        assert "val: all pixels of all label maps are ignored" in text


def test_sparse_labels_of_listed_classes_are_warned_of(clean, write_settings):
    change_masks(clean, lambda mask: np.where(np.arange(24)[:, None] < 4, mask, 255))
    write_settings(clean, **THREE)
    assert any("255 is ignored and holds" in text for text in data.audit(clean).warnings)
    for settings in (
        THREE | {"ignore_label": 255},
        NAMED | {"values": [0, 255], "ignore_label": [1, 2]},  # a class
    ):
        write_settings(clean, **settings)
        assert not any("255 is ignored" in text for text in data.audit(clean).warnings)


class Changed(data.Shapes):
    def dataset(self, split, numbers=None):
        pairs = super().dataset(split, numbers)
        return pairs.map(lambda image, label: (image[:-1], label + 3))


def test_other_sources_are_checked_pair_by_pair():
    found, text = faults_of(Changed(train=3, val=1), ["train"])
    assert found.keys() == {"sizes differ", "label value out of range"}
    assert "train/train_00002" in text


def test_folders_are_not_listed_for_each_image(tmp_path, write_pair, monkeypatch):
    listed, listing = [], Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: listed.append(path) or listing(path))
    counts = []
    for images in (2, 20):
        root = tmp_path / str(images)
        for number in range(images):
            write_pair(root, "train", str(number), np.resize(np.uint8([0, 1]), (8, 8)))
        listed.clear()
        data.audit(data.Folder(root))
        counts.append(len(listed))
    assert counts[0] == counts[1]
