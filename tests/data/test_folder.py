from __future__ import annotations

import io
import json
import logging
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_deeplab import data


def first(source, split="train"):
    return next(source.dataset(split).as_numpy_iterator())


def test_labels_and_pixels_arrive_unchanged(tmp_path, write_pair, blocks):
    image = np.random.default_rng(1).integers(0, 256, (24, 32, 3), np.uint8)
    write_pair(tmp_path, "train", "b", blocks, image)
    write_pair(tmp_path, "train", "a", blocks[::-1].copy(), image[::-1].copy())
    source = data.Folder(tmp_path)
    assert source.splits == ("train",)
    assert source.names("train") == ["a", "b"]
    assert source.info.classes == ("class_0", "class_1", "class_2")
    assert source.info.colors == data.voc_colors(3)
    pairs = list(source.dataset("train").as_numpy_iterator())
    np.testing.assert_array_equal(pairs[1][0], image)
    np.testing.assert_array_equal(pairs[1][1], blocks)
    np.testing.assert_array_equal(pairs[0][1], blocks[::-1])
    assert source.decoded_bytes("train") == 2 * 24 * 32 * 4
    assert data.Source.decoded_bytes(source, "train") == 2 * 24 * 32 * 4


def test_palette_indices_are_labels_and_palette_gives_colors(tmp_path, write_pair, blocks):
    palette = [(9, 9, 9), (200, 0, 0), (0, 200, 0), *[(0, 0, 0)] * 252, (255, 255, 255)]
    write_pair(tmp_path, "train", "a", blocks, palette=palette)
    assert Image.open(tmp_path / "train/labels/a.png").mode == "P"
    source = data.Folder(tmp_path)
    np.testing.assert_array_equal(first(source)[1], blocks)
    assert source.info.colors == tuple(palette[:3])


@pytest.mark.parametrize(
    "kind, mode",
    [
        *(("PNG", mode) for mode in ("L", "LA", "RGBA", "P", "1", "I;16")),
        *(("JPEG", mode) for mode in ("L", "1")),  # all that the format holds
        *(("BMP", mode) for mode in ("L", "RGBA", "P", "1")),
    ],
)
def test_photographs_of_every_mode_become_rgb_or_are_named(
    tmp_path, write_pair, blocks, mode, kind
):
    path, _ = write_pair(tmp_path, "train", "a", blocks)
    grey = np.kron(np.random.default_rng(0).integers(0, 2, (3, 4)) * 255, np.ones((8, 8)))
    picture = Image.fromarray(grey.astype(np.uint8))
    if mode == "I;16":
        picture = Image.fromarray(grey.astype(np.uint16) * 257)
    elif mode != "L":
        picture = picture.convert(mode)
    encoded = io.BytesIO()
    picture.save(encoded, kind, quality=100)
    path.write_bytes(encoded.getvalue())
    if kind == "BMP" and mode == "1":
        with pytest.raises(data.DatasetError, match="image of unsupported mode"):
            data.audit(tmp_path)
        return
    data.audit(tmp_path)
    image, _ = first(data.Folder(tmp_path))
    np.testing.assert_allclose(image, np.repeat(grey[..., None], 3, -1), atol=3)


def test_values_map_masks_and_ignore_label_lists(tmp_path, write_pair):
    label = np.array([[0, 128], [200, 255], [7, 0]], np.uint8)
    write_pair(tmp_path, "train", "a", label)
    settings = {"classes": ["x", "y"], "values": [128, 0], "ignore_label": [200, 255, 7]}
    (tmp_path / "dataset.json").write_text(json.dumps(settings))
    source = data.Folder(tmp_path)
    np.testing.assert_array_equal(first(source)[1], [[1, 0], [255, 255], [255, 1]])
    assert source.info.classes == ("x", "y")


def test_declared_ignore_label_replaces_255(tmp_path, write_pair):
    write_pair(tmp_path, "train", "a", np.array([[0, 1, 255]], np.uint8))
    (tmp_path / "dataset.json").write_text('{"classes": ["x", "y"], "ignore_label": 11}')
    with pytest.raises(data.DatasetError, match=r"255 \(1 pixels\)"):
        data.audit(tmp_path)
    with pytest.raises(Exception, match=r"a\.png: label value out of range: \[255\] .*0..1 or 11"):
        first(data.Folder(tmp_path))


def test_masks_of_0_and_255_are_two_classes(tmp_path, write_pair, caplog):
    write_pair(tmp_path, "train", "a", np.array([[0, 255, 0]], np.uint8))
    source = data.Folder(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert source.info.num_classes == 2
    assert "0 and 255" in caplog.text
    np.testing.assert_array_equal(first(source)[1], [[0, 1, 0]])


def test_one_bit_masks_are_0_and_255(tmp_path, write_pair):
    _, path = write_pair(tmp_path, "train", "a", np.zeros((4, 8), np.uint8))
    mask = np.arange(32).reshape(4, 8) % 3 == 0
    Image.fromarray(mask).save(path)
    assert Image.open(path).mode == "1"
    np.testing.assert_array_equal(first(data.Folder(tmp_path))[1], mask.astype(np.uint8))


@pytest.mark.parametrize(
    "values, count",
    [([0, 1, 2, 255], 3), ([1, 2, 3], 4), ([0, 2], 3), ([0, 1], 2), (range(151), 151)],
)
def test_numbered_classes_are_counted(tmp_path, write_pair, values, count):
    write_pair(tmp_path, "val", "a", np.array([list(values)], np.uint8))
    assert data.Folder(tmp_path).info.num_classes == count


@pytest.mark.parametrize(
    "values", [[0, 128, 255], [0], [255], [0, 15], range(0, 250, 3), range(256)]
)
def test_unclear_classes_ask_for_a_dataset_json_and_show_it(tmp_path, write_pair, values):
    write_pair(tmp_path, "train", "a", np.array([list(values)], np.uint8))
    with pytest.raises(data.DatasetError, match="classes unclear") as caught:
        _ = data.Folder(tmp_path).info
    assert '"values": [' in str(caught.value)
    with pytest.raises(data.DatasetError, match="classes unclear"):
        data.audit(tmp_path)


def test_shown_dataset_json_works(tmp_path, write_pair):
    label = np.array([[0, 128, 254]], np.uint8)
    write_pair(tmp_path, "train", "a", label)
    with pytest.raises(data.DatasetError) as caught:
        data.audit(tmp_path)
    text = str(caught.value)
    shown = text[text.index("{") : text.index("}") + 1]
    (tmp_path / "dataset.json").write_text(shown)
    data.audit(tmp_path)
    np.testing.assert_array_equal(first(data.Folder(tmp_path))[1], [[0, 1, 2]])


def test_masks_read_as_ignored_are_refused(tmp_path, write_pair):
    write_pair(tmp_path, "train", "a", np.array([[0, 255, 0]], np.uint8))
    (tmp_path / "dataset.json").write_text('{"classes": ["cell", "membrane"]}')
    with pytest.raises(data.DatasetError, match=r'"values": \[0, 255\]'):
        data.audit(tmp_path)
    # With the other class in another split, the masks of one split may well lack it.
    write_pair(tmp_path, "val", "b", np.array([[0, 255, 1]], np.uint8))
    assert data.audit(tmp_path, ["train"]).splits["train"].images == 1
    assert data.audit(tmp_path).info.num_classes == 2


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "not readable as JSON"),
        ("[]", "must hold a JSON object. Received: []"),
        ('{"class": ["a"]}', "unknown key 'class'"),
        ('{"classes": "sky"}', '"classes" must list'),
        ('{"classes": ["a", "a"]}', '"classes" must list'),
        ('{"classes": ["a", "b"], "colors": [[0, 0, 0]]}', '"classes" has 2, "colors" has 1'),
        ('{"classes": ["a"], "colors": [[0, 0, 300]]}', '"colors" must list'),
        ('{"classes": ["a", "b"], "ignore_label": 256}', '"ignore_label" must be'),
        ('{"classes": ["a", "b"], "ignore_label": 1}', "also the value of a class"),
        ('{"classes": ["a", "b"], "values": [0, 0]}', '"values" must list'),
        ('{"classes": ["a", "b"], "values": [0, 1.5]}', '"values" must list'),
        pytest.param("[" * 100_000, "nested too deeply", id="nested"),
        pytest.param('{"classes": ' + "[" * 100_000, "nested too deeply", id="nested-classes"),
        pytest.param('{"ignore_label": 1' + "0" * 5000 + "}", "not readable as JSON", id="digits"),
        ('{"ignore_label": null}', '"ignore_label" must be'),
    ],
)
def test_malformed_dataset_json_is_one_clear_error(tmp_path, write_pair, blocks, content, message):
    write_pair(tmp_path, "train", "a", blocks)
    (tmp_path / "dataset.json").write_text(content)
    for use in (lambda: data.Folder(tmp_path).info, lambda: data.audit(tmp_path)):
        with pytest.raises(data.DatasetError, match=r"bad dataset.json") as caught:
            use()
        assert message in str(caught.value)


@pytest.mark.parametrize("kind", ["folder", "dangling link", "pipe"])
def test_a_dataset_json_that_is_no_file_is_not_passed_over(tmp_path, write_pair, blocks, kind):
    write_pair(tmp_path, "train", "a", blocks)
    path = tmp_path / "dataset.json"
    if kind == "folder":
        path.mkdir()
    elif kind == "dangling link":
        path.symlink_to(tmp_path / "nowhere")
    else:
        os.mkfifo(path)
    with pytest.raises(data.DatasetError, match="dataset.json: is not a regular file"):
        data.audit(tmp_path)


def test_a_dataset_json_may_begin_with_a_byte_order_mark(tmp_path, write_pair, blocks):
    write_pair(tmp_path, "train", "a", blocks)
    content = '{"classes": ["a", "b", "c"]}'
    (tmp_path / "dataset.json").write_text(content, encoding="utf-8-sig")
    assert data.Folder(tmp_path).info.classes == ("a", "b", "c")


def test_colors_of_fewer_classes_than_the_labels_are_one_error(tmp_path, write_pair, blocks):
    write_pair(tmp_path, "train", "a", blocks)
    (tmp_path / "dataset.json").write_text('{"colors": [[0, 0, 0], [9, 9, 9]]}')
    with pytest.raises(data.DatasetError, match=r"expected: 0\.\.1 or 255.*\n.*: 2 \("):
        data.audit(tmp_path)
    with pytest.raises(Exception, match=r"label value out of range: \[2\]"):
        first(data.Folder(tmp_path))


def test_colors_and_ignored_values_must_agree(tmp_path, write_pair, blocks):
    blocks = np.where(blocks == 255, 0, blocks).astype(np.uint8)
    colors = [[9, 9, 9], [0, 0, 7]]
    image = np.zeros((*blocks.shape, 3), np.uint8)
    write_pair(tmp_path, "train", "a", blocks)
    write_pair(tmp_path, "train", "b", np.array([[0, 0, 0], *colors], np.uint8)[blocks], image)
    listed = {"colors": colors, "ignore_label": 0}
    (tmp_path / "dataset.json").write_text(json.dumps(listed))
    with pytest.raises(data.DatasetError, match=r"\[0\] is also the value of a class; list the"):
        first(data.Folder(tmp_path))
    listed |= {"values": [1, 2], "ignore_colors": [[0, 0, 0]]}
    (tmp_path / "dataset.json").write_text(json.dumps(listed))
    expected = np.select([blocks == 1, blocks == 2], [0, 1], 255)
    for _, label in data.Folder(tmp_path).dataset("train").as_numpy_iterator():
        np.testing.assert_array_equal(label, expected)
    data.audit(tmp_path)


def test_too_many_colors_are_one_error(tmp_path, write_pair, blocks):
    write_pair(tmp_path, "train", "a", blocks)
    (tmp_path / "dataset.json").write_text(json.dumps({"colors": [[0, 0, 0]] * 300}))
    for use in (lambda: data.Folder(tmp_path).info, lambda: data.audit(tmp_path)):
        with pytest.raises(data.DatasetError, match="must list up to 255"):
            use()


@pytest.mark.parametrize("ignored", [0, 1, [0, 255], [2, 255]])
def test_ignore_label_alone_takes_effect(tmp_path, write_pair, blocks, caplog, ignored):
    blocks = np.where(blocks == 255, 3, blocks).astype(np.uint8)
    write_pair(tmp_path, "train", "a", blocks)
    (tmp_path / "dataset.json").write_text(json.dumps({"ignore_label": ignored}))
    gone = ignored if isinstance(ignored, list) else [ignored]
    left = [value for value in range(4) if value not in gone]
    source = data.Folder(tmp_path)
    with caplog.at_level(logging.WARNING):
        label = first(source)[1]
    expected = np.select([blocks == value for value in left], range(len(left)), 255)
    np.testing.assert_array_equal(label, expected)
    assert source.info.num_classes == len(left)
    report = data.audit(tmp_path)
    shares = [float((blocks == value).mean()) for value in left]
    assert report.splits["train"].class_share == pytest.approx(tuple(shares))
    assert report.splits["train"].ignored_share == pytest.approx(1 - sum(shares))
    said = f"mask values {left[0]}"
    assert said in caplog.text
    assert said in str(report)


def test_missing_partner_is_never_dropped(tmp_path, write_pair, blocks):
    for name in "ab":
        write_pair(tmp_path, "train", name, blocks)
    (tmp_path / "train/labels/b.png").unlink()
    source = data.Folder(tmp_path)
    for use in (source.names, source.dataset):
        with pytest.raises(data.DatasetError, match=r"train/images/b\.png"):
            use("train")


def test_sizes_that_differ_stop_an_unaudited_run(tmp_path, write_pair, blocks):
    write_pair(tmp_path, "train", "a", blocks, np.zeros((24, 33, 3), np.uint8))
    with pytest.raises(Exception, match=r"a\.png: sizes differ: image 33x24, label map 32x24"):
        first(data.Folder(tmp_path))


def test_damaged_label_in_an_unaudited_run_is_named(tmp_path, write_pair, blocks):
    (tmp_path / "dataset.json").write_text('{"classes": ["a", "b", "c"]}')
    _, path = write_pair(tmp_path, "train", "a", blocks)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(Exception, match=r"a\.png: truncated file"):
        first(data.Folder(tmp_path))


def test_accents_in_either_form_are_one_name(tmp_path, write_pair, blocks):
    composed, decomposed = (unicodedata.normalize(form, "für é") for form in ("NFC", "NFD"))
    assert composed != decomposed
    image, label = write_pair(tmp_path, "train", "a", blocks)
    image.rename(image.with_name(f"{composed}.png"))
    label.rename(label.with_name(f"{decomposed}.png"))
    source = data.Folder(tmp_path)
    assert source.names("train") == [composed]
    assert data.audit(source).splits["train"].images == 1
    np.testing.assert_array_equal(first(source)[1], blocks)
    (tmp_path / f"train/images/{decomposed}.png").write_bytes(b"another")
    if len(list((tmp_path / "train/images").iterdir())) == 2:  # some file systems keep one
        with pytest.raises(data.DatasetError, match="duplicate name"):
            data.audit(tmp_path)


@pytest.mark.parametrize("part", ["images", "labels", "both"])
def test_file_names_that_are_not_utf8_are_one_fault_with_their_names(
    tmp_path, write_pair, blocks, part
):
    paths = write_pair(tmp_path, "train", "caf", blocks)
    write_pair(tmp_path, "train", "good", blocks)
    for path in paths:
        if part in (path.parent.name, "both"):
            try:
                os.rename(path, os.fsencode(path.parent) + b"/caf\xe9.png")
            except OSError:
                pytest.skip("this file system holds no such name")
    source = data.Folder(tmp_path)
    for use in (data.audit, lambda source: source.names("train")):
        with pytest.raises(data.DatasetError, match="file name not UTF-8") as caught:
            use(source)
        said = str(caught.value).encode("utf-8").decode()
        assert said.count("/caf\\udce9.png") == (2 if part == "both" else 1)


def test_a_root_that_is_not_utf8_is_named(tmp_path, write_pair, blocks):
    root = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    try:
        os.mkdir(root)
    except OSError:
        pytest.skip("this file system holds no such name")
    write_pair(Path(root), "train", "a", blocks)
    with pytest.raises(data.DatasetError, match="file name not UTF-8") as caught:
        data.audit(root)
    assert "caf\\udce9" in str(caught.value)


def test_split_and_root_errors(tmp_path, write_pair, blocks):
    write_pair(tmp_path, "train", "a", blocks)
    with pytest.raises(ValueError, match=r"\('train',\)"):
        data.Folder(tmp_path).dataset("val")
    with pytest.raises(data.DatasetError, match="is not a folder"):
        data.Folder(tmp_path / "nothing")


def test_only_the_pairs_asked_for_are_read(tmp_path, write_pair):
    for index in range(5):
        label = np.full((2, 2), index, np.uint8)
        image = np.full((2, 2, 3), index, np.uint8)
        paths = write_pair(tmp_path, "train", f"{index:02}", label, image)
    source = data.Folder(tmp_path)
    assert source.info.num_classes == 5
    for path in paths:
        path.unlink()  # the last one is not asked for
    numbers = tf.data.Dataset.from_tensor_slices(np.array([3, 0, 3, 1]))
    dataset = source.dataset("train", numbers)
    assert int(dataset.cardinality()) == 4
    pairs = [(int(i[0, 0, 0]), int(lb[0, 0])) for i, lb in dataset.as_numpy_iterator()]
    assert pairs == [(3, 3), (0, 0), (3, 3), (1, 1)]


def test_camvid(shared):
    source = data.Folder(shared / "camvid")
    image, label = first(source, "val")
    raw = np.asarray(Image.open(shared / f"camvid/val/labels/{source.names('val')[0]}.png"))
    assert source.info.classes[10] == "bicyclist"
    assert image.shape == (360, 480, 3)
    assert 11 in raw
    np.testing.assert_array_equal(label, np.where(raw == 11, 255, raw))


def test_membrane(shared):
    source = data.Folder(shared / "membrane")
    image, label = first(source)
    assert source.info.num_classes == 2
    assert image.shape == (512, 512, 3)
    assert (image[..., 0] == image[..., 2]).all()
    assert set(np.unique(label)) == {0, 1}
    assert 0.6 < label.mean() < 0.9  # most of the picture is cell
