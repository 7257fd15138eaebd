from __future__ import annotations

import logging
import os
import unicodedata

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_deeplab import data
from keras_deeplab.data.label_codes import read_settings


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


def test_a_palette_of_grey_values_gives_no_colors(make_folder, blocks):
    """Pillow's own, with which all classes would look black."""
    source = data.Folder(make_folder(blocks, None, [(grey,) * 3 for grey in range(256)]))
    assert source.info.colors == data.voc_colors(3)


def test_palette_indices_are_labels_and_palette_gives_colors(make_folder, blocks):
    palette = [(9, 9, 9), (200, 0, 0), (0, 200, 0), *[(0, 0, 0)] * 252, (255, 255, 255)]
    source = data.Folder(make_folder(blocks, None, palette))
    np.testing.assert_array_equal(first(source)[1], blocks)
    assert source.info.colors == tuple(palette[:3])


def test_values_map_masks_and_ignore_label_lists(make_folder):
    settings = {"classes": ["x", "y"], "values": [128, 0], "ignore_label": [200, 255, 7]}
    source = data.Folder(make_folder([[0, 128], [200, 255], [7, 0]], **settings))
    np.testing.assert_array_equal(first(source)[1], [[1, 0], [255, 255], [255, 1]])
    assert source.info.classes == ("x", "y")


@pytest.mark.parametrize(
    "settings, found, expected",
    [
        ({"classes": ["x", "y"], "ignore_label": 11}, 255, "0, 1, ignored: 11"),
        ({"colors": [[0, 0, 0], [9, 9, 9]]}, 2, "0, 1, ignored: 255"),
    ],
)
def test_values_that_are_not_listed_are_faults(make_folder, settings, found, expected):
    root = make_folder([[0, 1, found]], **settings)
    text = (
        rf'expected: {expected}; a dataset.json may list .*"ignore_label"\n.*: {found} \(1 pixels\)'
    )
    with pytest.raises(data.DatasetError, match=text):
        data.audit(root)
    with pytest.raises(Exception, match=rf"a\.png: label value out of range: \[{found}\]"):
        first(data.Folder(root))


def test_masks_of_0_and_255_are_two_classes(make_folder, caplog):
    root = make_folder([[0, 255, 0]])
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(first(data.Folder(root))[1], [[0, 1, 0]])
    assert "labels 0 to 1 are the mask values 0, 255" in caplog.text
    assert "labels 0 to 1 are the mask values 0, 255" in str(data.audit(root))
    mask = Image.fromarray(np.array([[False, True, False]]))  # 1 bit, white in viewers
    mask.save(root / "train/labels/a.png")
    np.testing.assert_array_equal(first(data.Folder(root))[1], [[0, 1, 0]])


def test_unclear_classes_ask_for_a_dataset_json_that_works(make_folder):
    root = make_folder([[0, 128, 254]])
    for use in (data.audit, lambda root: data.Folder(root).info):
        with pytest.raises(data.DatasetError, match="classes unclear") as caught:
            use(root)
    text = str(caught.value)
    (root / "dataset.json").write_text(text[text.index("{") : text.index("}") + 1])
    data.audit(root)
    np.testing.assert_array_equal(first(data.Folder(root))[1], [[0, 1, 2]])


@pytest.mark.parametrize(
    "content, message",
    [
        ({"class": ["a"]}, "unknown key 'class'"),
        ({"classes": "sky"}, '"classes" must list'),
        ({"classes": []}, '"classes" must list'),
        ({"classes": ["a", "a"]}, '"classes" must list'),
        ({"classes": ["a", "b"], "colors": [[0, 0, 0]]}, "must have one length"),
        ({"classes": ["a", "b"], "values": [7]}, "must have one length"),
        ({"classes": ["a"], "colors": [[0, 0, 300]]}, '"colors" must list'),
        ({"colors": [[0, 0, 0]] * 300}, '"colors" must list up to 255'),
        ({"classes": ["a", "b"], "ignore_label": 256}, '"ignore_label" must list'),
        ({"ignore_label": None}, '"ignore_label" must list'),
        ({"classes": ["a", "b"], "ignore_label": 1}, r'"ignore_label" [1] are also listed'),
        ({"colors": [[9, 9, 9]], "ignore_label": 0}, r'"ignore_label" [0] are also listed'),
        ({"classes": ["a", "b"], "values": [0, 0]}, '"values" must list'),
        ({"classes": ["a", "b"], "values": [0, 1.5]}, '"values" must list'),
        ({"ignore_colors": [[9, 9, 9]]}, 'requires "colors"'),
        (
            {"colors": [[9, 9, 9], [0, 0, 7]], "ignore_colors": [[0, 0, 7]]},
            r'"ignore_colors" [(0, 0, 7)] are also listed',
        ),
        ({"colors": [[9, 9, 9]], "ignore_colors": [0, 0, 7]}, '"ignore_colors" must list'),
        ({"class": ["a"], "values": [0, 0]}, "known: classes, values, colors, ignore_colors, "),
        ({"class": ["a"], "values": [0, 0]}, '"values" must list'),
    ],
)
def test_all_problems_of_a_dataset_json_are_listed(tmp_path, write_settings, content, message):
    write_settings(tmp_path, **content)
    with pytest.raises(ValueError, match='"|key') as caught:
        read_settings(tmp_path / "dataset.json")
    assert message in str(caught.value)


def test_a_malformed_dataset_json_is_a_fault(make_folder, blocks):
    root = make_folder(blocks)
    (root / "dataset.json").write_text("[]")
    for use in (data.audit, lambda root: data.Folder(root).info):
        with pytest.raises(data.DatasetError, match=r"bad dataset.json(.|\n)*a JSON object"):
            use(root)
    (root / "dataset.json").unlink()
    os.mkfifo(root / "dataset.json")
    with pytest.raises(data.DatasetError, match="dataset.json: is not a regular file"):
        data.audit(root)


def test_ignore_label_alone_takes_effect(make_folder, blocks):
    source = data.Folder(make_folder(blocks, ignore_label=[1, 255]))
    expected = np.select([blocks == 0, blocks == 2], [0, 1], 255)
    np.testing.assert_array_equal(first(source)[1], expected)
    part = data.audit(source).splits["train"]
    assert part.class_share == pytest.approx([(blocks == value).mean() for value in (0, 2)])
    assert part.ignored_share == pytest.approx((expected == 255).mean())


def test_a_missing_partner_is_never_dropped(make_folder, write_pair, blocks):
    source = data.Folder(make_folder(blocks))
    _, label = write_pair(source.root, "train", "b", blocks)
    label.unlink()
    for use in (source.names, source.dataset):
        with pytest.raises(data.DatasetError, match=r"train/images/b\.png"):
            use("train")


def test_faults_stop_an_unaudited_run(make_folder, blocks):
    root = make_folder(blocks, np.zeros((24, 33, 3), np.uint8), classes=["a", "b", "c"])
    with pytest.raises(Exception, match=r"a\.png: sizes differ: image 33x24, label map 32x24"):
        first(data.Folder(root))
    path = root / "train/labels/a.png"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(Exception, match=r"labels/a\.png: truncated file"):
        first(data.Folder(root))


def test_classes_are_not_inferred_beside_a_damaged_label_map(make_folder, write_pair, blocks):
    _, path = write_pair(make_folder(blocks), "val", "b", blocks)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(data.DatasetError, match=r"truncated file(.|\n)*val/labels/b\.png: "):
        _ = data.Folder(path.parents[2]).info


def test_accents_in_either_form_are_one_name(tmp_path, write_pair, blocks):
    composed, decomposed = (unicodedata.normalize(form, "für é") for form in ("NFC", "NFD"))
    assert composed != decomposed
    image, label = write_pair(tmp_path, "train", "a", blocks)
    image.rename(image.with_name(f"{composed}.png"))
    label.rename(label.with_name(f"{decomposed}.png"))
    source = data.Folder(tmp_path)
    assert source.names("train") == [composed]
    np.testing.assert_array_equal(first(source)[1], blocks)
    (tmp_path / f"train/images/{decomposed}.png").write_bytes(b"another")
    if len(list((tmp_path / "train/images").iterdir())) == 2:  # some file systems keep one
        with pytest.raises(data.DatasetError, match="duplicate name"):
            data.audit(tmp_path)


@pytest.mark.parametrize("folder", [True, False])
def test_names_that_are_not_utf8_are_faults(tmp_path, write_pair, blocks, latin_name, folder):
    root = tmp_path / latin_name if folder else tmp_path
    paths = write_pair(root, "train", "a", blocks)
    for path in () if folder else paths:
        path.rename(path.with_stem(latin_name))
    for use in (data.audit, lambda root: data.Folder(root).names("train")):
        with pytest.raises(data.DatasetError, match="file name not UTF-8") as caught:
            use(root)
        assert "/caf\\udce9" in str(caught.value)


def test_only_the_pairs_asked_for_are_read(tmp_path, write_pair):
    for index in range(5):
        image = np.full((2, 2, 3), index, np.uint8)
        paths = write_pair(tmp_path, "train", f"{index:02}", image[..., 0], image)
    source = data.Folder(tmp_path)
    assert source.info.num_classes == 5
    for path in paths:
        path.unlink()  # the last one is not read
    numbers = tf.data.Dataset.from_tensor_slices(np.array([3, 0, 3, 1]))
    dataset = source.dataset("train", numbers)
    assert int(dataset.cardinality()) == 4
    pairs = [(int(i[0, 0, 0]), int(lb[0, 0])) for i, lb in dataset.as_numpy_iterator()]
    assert pairs == [(3, 3), (0, 0), (3, 3), (1, 1)]


def test_camvid(shared):
    source = data.Folder(shared / "camvid")
    _, label = first(source, "val")
    raw = np.asarray(Image.open(shared / f"camvid/val/labels/{source.names('val')[0]}.png"))
    assert source.info.classes[10] == "bicyclist"
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
