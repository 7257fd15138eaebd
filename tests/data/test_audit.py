from __future__ import annotations

import json
import logging
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from keras_deeplab import data


@pytest.fixture
def clean(tmp_path, write_pair, blocks):
    for split, count in (("train", 14), ("val", 2)):
        for index in range(count):
            write_pair(tmp_path, split, f"{index:02}", blocks)
    return tmp_path


def kinds(error):
    return {fault.kind: fault for fault in error.value.faults}


def plant_value(root, name):
    path = root / f"train/labels/{name}.png"
    label = np.asarray(Image.open(path)).copy()
    label[0, :5] = 77
    Image.fromarray(label).save(path)


def truncate(path, keep=0.6):
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])


def to_jpeg(path):
    Image.open(path).save(path.with_suffix(".jpg"))
    path.unlink()
    return path.with_suffix(".jpg")


def test_twelve_faults_at_once(clean):
    train, val = clean / "train", clean / "val"
    (clean / "dataset.json").write_text('{"classes": ["a", "b", "c"]}')
    plant_value(clean, "00")
    Image.new("RGB", (30, 24)).save(train / "images/01.png")
    (train / "labels/02.png").unlink()
    (train / "images/03.png").unlink()
    (train / "images/04.png").write_bytes(b"no image at all")
    truncate(to_jpeg(train / "images/05.png"))
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
    with pytest.raises(data.DatasetError) as caught:
        data.audit(clean)
    expected = {
        "label value out of range": "train/labels/00.png: 77 (5 pixels)",
        "sizes differ": "train/images/01.png: image 30x24, label map 32x24",
        "image without label": "train/images/02.png",
        "label without image": "train/labels/03.png",
        "unreadable file": "train/images/04.png: 15 bytes of an unknown format",
        "truncated file": "train/images/05.jpg",
        "label map not one-channel": "train/labels/06.png: mode RGB",
        "duplicate name": "train/images: 07.bmp, 07.png",
        "unsupported file": "train/images/notes.txt",
        "JPEG label map": "train/labels/08.jpg",
        "image of unsupported mode": "train/images/09.bmp: BMP with a palette (mode P)",
        "empty split": "val: no images and no label maps",
        "missing folder": "test/labels is not there",
        "unknown split folder": "valid",
    }
    found = kinds(caught)
    assert found.keys() == expected.keys()
    for kind, text in expected.items():
        assert len(found[kind].found) == 1, found[kind]
        assert found[kind].found[0].startswith(text)
        assert text in str(caught.value)
        assert found[kind].expected in str(caught.value)
    assert "0..2 or 255 (ignored)" in found["label value out of range"].expected
    assert "14 faults of 14 kinds" in str(caught.value)


def test_bad_settings_do_not_hide_other_faults(clean):
    (clean / "dataset.json").write_text('{"clases": []}')
    (clean / "train/images/03.png").unlink()
    with pytest.raises(data.DatasetError) as caught:
        data.audit(clean)
    assert kinds(caught).keys() == {"bad dataset.json", "label without image"}


def test_first_ten_are_listed_and_all_counted(clean):
    for index in range(14):
        (clean / f"train/images/{index:02}.png").write_bytes(b"")
    with pytest.raises(data.DatasetError) as caught:
        data.audit(clean)
    message = str(caught.value)
    assert "unreadable file (14)" in message
    assert "... and 4 more" in message
    assert message.count("train/images/") == 10
    assert len(kinds(caught)["unreadable file"].found) == 14


@pytest.mark.parametrize("cut", [3, 12, 40, 300])
@pytest.mark.parametrize(
    "part, kind", [("images", "png"), ("images", "jpg"), ("images", "bmp"), ("labels", "png")]
)
def test_every_truncation_is_caught(clean, kind, cut, part):
    path = clean / "train" / part / "00.png"
    if part == "labels":
        noise = np.random.default_rng(0).integers(0, 3, (24, 32), np.uint8)
        Image.fromarray(noise).save(path)
    if kind != "png":
        Image.open(path).save(path.with_suffix(f".{kind}"))
        path.unlink()
        path = path.with_suffix(f".{kind}")
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(data.DatasetError) as caught:
        data.audit(clean)
    assert kinds(caught).keys() == {"truncated file"}
    assert path.name in str(caught.value)


def test_damaged_bytes_are_unreadable(clean):
    path = clean / "train/labels/00.png"
    content = bytearray(path.read_bytes())
    start = content.index(b"IDAT") + 6
    content[start : start + 20] = b"\x00" * 20
    path.write_bytes(content)
    with pytest.raises(data.DatasetError) as caught:
        data.audit(clean)
    assert kinds(caught).keys() == {"unreadable file"}


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_masks_of_several_channels(clean, mode):
    path = clean / "train/labels/00.png"
    Image.open(path).convert(mode).save(path)
    with pytest.raises(data.DatasetError, match=f"train/labels/00.png: mode {mode}") as caught:
        data.audit(clean)
    assert kinds(caught).keys() == {"label map not one-channel"}


def test_other_formats_behind_a_known_ending(clean):
    Image.new("RGB", (32, 24)).save(clean / "train/images/00.png", "GIF")
    Image.new("L", (32, 24)).save(clean / "train/labels/01.png", "JPEG")
    with pytest.raises(data.DatasetError) as caught:
        data.audit(clean)
    assert "GIF data" in kinds(caught)["unreadable file"].found[0]
    assert "JPEG data" in kinds(caught)["JPEG label map"].found[0]


def test_system_and_hidden_files_are_passed_over(clean):
    for name in ("Thumbs.db", ".DS_Store", "desktop.ini", "._00.png"):
        (clean / "train/images" / name).write_bytes(b"x")
    assert data.audit(clean).splits["train"].images == 14


def test_report_counts_pixels(clean, write_pair):
    write_pair(clean, "val", "wide", np.zeros((10, 60), np.uint8))
    (clean / "dataset.json").write_text('{"classes": ["a", "b", "c", "d"]}')
    report = data.audit(str(clean))
    train, val = report.splits["train"], report.splits["val"]
    assert (train.images, val.images) == (14, 3)
    assert train.class_share == pytest.approx((3 / 12, 4 / 12, 4 / 12, 0))
    assert train.ignored_share == pytest.approx(1 / 12)
    assert (val.smallest, val.largest) == ((10, 32), (24, 60))
    assert "train: no pixel of d" in report.warnings
    assert "33.33%" in str(report)
    assert "32x10 to 60x24" in str(report)


def test_only_the_splits_asked_for(clean):
    (clean / "train/images/00.png").write_bytes(b"")
    assert list(data.audit(clean, ["val"]).splits) == ["val"]
    with pytest.raises(ValueError, match="test"):
        data.audit(clean, ["test"])


def test_palettes_that_disagree_are_warned_of(clean, write_pair, blocks):
    for name, color in (("x", (1, 1, 1)), ("y", (2, 2, 2))):
        palette = [(0, 0, 0), color, (5, 5, 5), *[(0, 0, 0)] * 253]
        write_pair(clean, "train", name, blocks, palette=palette)
    warnings = "".join(data.audit(clean).warnings)
    assert "index 1 is (1, 1, 1) in train/labels/x.png and (2, 2, 2)" in warnings


NAMED = {"classes": ["ground", "cell"]}


@pytest.mark.parametrize("settings", [None, NAMED])
@pytest.mark.parametrize(
    "blob, text",
    [
        ({}, r"hold 1 .*together \(0.03%\)"),
        ({"more": 80}, r"255 (is ignored and )?holds 71.64% of all pixels"),
        ({"files": 3}, r"hold 1 .*together \(under 0.01%\)"),
    ],
)
def test_foreground_of_255_beside_stray_pixels_is_never_ignored(
    clean, write_pair, settings, blob, text
):
    shutil.rmtree(clean / "train")
    shutil.rmtree(clean / "val")
    label = np.zeros((60, 60), np.uint8)
    label[:12, :15] = 255  # 5 %
    label[20 : 20 + blob.get("more", 0) // 2] = 255
    for index in range(blob.get("files", 0)):
        write_pair(clean, "val", f"{index}", label)
    label[-1, -1] = 1
    write_pair(clean, "train", "a", label)
    if settings:
        (clean / "dataset.json").write_text(json.dumps(settings))
    with pytest.raises(data.DatasetError) as caught:
        data.audit(clean)
    assert kinds(caught).keys() == {"classes unclear"}
    for part in (text, r'"values": \[0, 255\]', "if 255 is a class", "if (255|it) is ignored"):
        assert re.search(part, str(caught.value))
    # Both readings are taken where they are written down.
    for content, classes in (
        (NAMED | {"values": [0, 255], "ignore_label": [1]}, (0, 255)),
        (NAMED | {"ignore_label": 255}, (0, 1)),
    ):
        (clean / "dataset.json").write_text(json.dumps(content))
        source = data.Folder(clean)
        assert data.audit(source).info.classes == ("ground", "cell")
        expected = [(label == value).mean() for value in classes]
        found = data.audit(source, ["train"]).splits["train"].class_share
        assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    "settings, kind",
    [
        (None, "classes unclear"),
        ({"ignore_label": [0, 1, 2, 255]}, "classes unclear"),
        ({"ignore_label": [0, 2, 255]}, "classes unclear"),
        ({"classes": ["a", "b"], "values": [7, 8], "ignore_label": [0, 1, 2, 255]}, "nothing la"),
        ({"classes": ["a", "b"], "values": [1, 8], "ignore_label": [0, 2, 255]}, "classes unclear"),
    ],
)
def test_masks_that_leave_less_than_two_classes_are_an_error(clean, settings, kind):
    for path in clean.glob("*/labels/*.png"):
        if settings is None:
            Image.new("L", (32, 24), 255).save(path)
    if settings:
        (clean / "dataset.json").write_text(json.dumps(settings))
    with pytest.raises(data.DatasetError, match=kind) as caught:
        data.audit(clean)
    assert '"classes": []' not in str(caught.value)
    if kind == "nothing la":
        assert "train: all pixels of all label maps are ignored" in str(caught.value)


def test_one_split_of_ignored_pixels_is_an_error(clean):
    for path in clean.glob("val/labels/*.png"):
        Image.new("L", (32, 24), 255).save(path)
    for splits in (None, ["val"]):
        with pytest.raises(data.DatasetError, match="val: all pixels") as caught:
            data.audit(clean, splits)
        assert kinds(caught).keys() == {"nothing labelled"}


def test_a_test_split_of_ignored_pixels_is_warned_of(clean, write_pair):
    write_pair(clean, "test", "a", np.full((24, 32), 255, np.uint8))
    report = data.audit(clean)
    assert "test: all pixels of all label maps are ignored" in report.warnings


@pytest.mark.parametrize("listed", [{}, {"classes": ["a", "b"]}])
def test_a_listed_class_of_255_is_no_fault(clean, listed):
    listed = {**listed, "values": [0, 255]}
    for path in clean.rglob("labels/*.png"):
        mask = np.asarray(Image.open(path))
        Image.fromarray(np.where(mask == 1, 255, 0).astype(np.uint8)).save(path)
    (clean / "dataset.json").write_text(json.dumps(listed))
    report = data.audit(clean)
    assert report.info.num_classes == 2
    assert 0 < report.splits["train"].class_share[1] < 1


def test_sparse_labels_of_listed_classes_are_warned_of(clean):
    for path in clean.rglob("labels/*.png"):
        mask = np.array(Image.open(path))
        mask[4:] = 255
        Image.fromarray(mask).save(path)
    (clean / "dataset.json").write_text('{"classes": ["a", "b", "c"]}')
    assert any("255 is ignored and holds" in text for text in data.audit(clean).warnings)
    (clean / "dataset.json").write_text('{"classes": ["a", "b", "c"], "ignore_label": 255}')
    assert not any("255 is ignored" in text for text in data.audit(clean).warnings)


def test_255_beside_one_of_the_listed_classes_is_a_fault(clean, caplog):
    for path in clean.rglob("labels/*.png"):
        mask = np.asarray(Image.open(path))
        Image.fromarray(np.where(mask == 1, 255, 0).astype(np.uint8)).save(path)
    (clean / "dataset.json").write_text('{"classes": ["a", "b"]}')
    with pytest.raises(data.DatasetError, match=r'"values": \[0, 255\] into dataset.json'):
        data.audit(clean)
    with caplog.at_level(logging.WARNING):
        assert data.Folder(clean).info.num_classes == 2
    assert "all classes except 0 hold 0 pixels" in caplog.text


class Ignored(data.Shapes):
    def dataset(self, split, numbers=None):
        return super().dataset(split, numbers).map(lambda image, label: (image, label | 255))


def test_other_sources_whose_pixels_are_all_ignored_are_an_error():
    with pytest.raises(data.DatasetError, match="train: all pixels of all label maps are ignored"):
        data.audit(Ignored(train=2, val=1))


def test_shares_that_are_rarely_meant_are_warned_of(clean, write_pair):
    label = np.zeros((200, 200), np.uint8)
    label[:60] = 255
    label[-60:] = 1
    label[100, 100] = 3
    write_pair(clean, "train", "wide", label)
    warnings = data.audit(clean).warnings
    assert any("255 is ignored and holds 2" in warning for warning in warnings)
    assert any("value 3 counts as a class" in warning for warning in warnings)
    (clean / "dataset.json").write_text('{"classes": ["a", "b", "c", "d"]}')
    warnings = data.audit(clean).warnings  # d may well be rare
    assert any("255 is ignored and holds 2" in warning for warning in warnings)
    assert not any("value 3" in warning for warning in warnings)


class Broken(data.Shapes):
    def dataset(self, split, numbers=None):
        def damage(image, label):
            return image[:-1], label + 3

        return super().dataset(split, numbers).map(damage)


def test_other_sources_are_checked_pair_by_pair():
    with pytest.raises(data.DatasetError) as caught:
        data.audit(Broken(train=3, val=0))
    assert kinds(caught).keys() == {"sizes differ", "label value out of range"}
    assert "train/train_00002" in str(caught.value)


def test_shared_folders_are_clean(shared):
    report = data.audit(shared / "camvid")
    assert [part.images for part in report.splits.values()] == [367, 101]
    assert report.splits["train"].smallest == report.splits["val"].largest == (360, 480)
    assert report.warnings == ()
    assert data.audit(shared / "membrane").splits["val"].images == 5
