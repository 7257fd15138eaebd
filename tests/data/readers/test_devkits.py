"""VOC, Cityscapes, ADE20K and CamVid, each in a small copy of its real layout."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
import scipy.io

from keras_deeplab import data
from keras_deeplab.data.readers import camvid, cityscapes
from keras_deeplab.data.readers.voc import CLASSES

SIZE = (12, 16)


@pytest.fixture
def voc(tmp_path, draw, values):
    """VOCdevkit with two images for training and one to validate."""
    masks = {"2007_000032": (0, 1, 255), "2007_000039": (0, 20), "2007_000033": (15, 255, 0)}
    for name, found in masks.items():
        draw(f"VOC2012/JPEGImages/{name}.jpg")
        palette = data.voc_colors(256)
        draw(f"VOC2012/SegmentationClass/{name}.png", values(*found), palette)
    lists = tmp_path / "VOC2012/ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_000032\n2007_000039\n")
    (lists / "val.txt").write_text("2007_000033\n")
    return tmp_path


@pytest.mark.parametrize("inner", ["", "/VOC2012"])
def test_voc(voc, read, values, inner):
    source, found = read(f"voc:{voc}{inner}")
    assert source.info.num_classes == 21
    assert source.info.classes[15] == "person"
    assert list(found["train"]) == ["2007_000032", "2007_000039"]
    np.testing.assert_array_equal(found["train"]["2007_000039"], values(0, 20))
    np.testing.assert_array_equal(found["val"]["2007_000033"], values(15, 255, 0))


def test_voc_with_the_annotations_of_sbd(voc, read, draw, values):
    for name in ("2007_000032", "2008_000002"):
        draw(f"VOC2012/JPEGImages/{name}.jpg")
        draw(f"VOC2012/SegmentationClassAug/{name}.png", values(0, 7))
    rows = [f"/JPEGImages/{n}.jpg /SegmentationClassAug/{n}.png" for n in ("2007_000032",)]
    listed = voc / "VOC2012/ImageSets/Segmentation/train_aug.txt"
    listed.write_text("\n".join([*rows, "2008_000002", ""]))
    _, found = read(f"voc:{voc}")
    assert list(found["train"]) == ["2007_000032", "2008_000002"]
    np.testing.assert_array_equal(found["train"]["2007_000032"], values(0, 7))
    assert list(found["val"]) == ["2007_000033"]


@pytest.mark.parametrize("reader", ["voc", "camvid"])
def test_names_in_lists_may_have_dots(voc, draw, values, read, reader):
    names = ("scene_1.5m", "scene_1.8m", "scene_2")
    root = voc
    for name in names:
        if reader == "voc":
            draw(f"VOC2012/JPEGImages/{name}.jpg")
            draw(f"VOC2012/SegmentationClass/{name}.png", values(0, 1))
            root = voc / "VOC2012/ImageSets/Segmentation"
        else:
            draw(f"images/{name}.png")
            draw(f"masks/{name}_L.png", np.full((12, 16, 3), 128))
    (root / "train.txt").write_text("scene_1.5m\nscene_1.8m.PNG\n")
    (root / "val.txt").write_text("/images/scene_2.png /masks/scene_2_L.png\n")
    _, found = read(f"{reader}:{voc}")
    names = {split: list(part) for split, part in found.items()}
    assert names == {"train": ["scene_1.5m", "scene_1.8m"], "val": ["scene_2"]}


def test_voc_names_all_that_is_missing(voc):
    (voc / "VOC2012/JPEGImages/2007_000032.jpg").unlink()
    (voc / "VOC2012/SegmentationClass/2007_000033.png").unlink()
    with pytest.raises(data.DatasetError) as caught:
        data.audit(f"voc:{voc}")
    assert "JPEGImages/2007_000032.jpg, which train.txt lists, is missing" in str(caught.value)
    assert "SegmentationClass/2007_000033.png, which val.txt lists" in str(caught.value)


@pytest.fixture
def sbd(voc, draw, values):
    """SBD as its archive unpacks: one image of VOC's train, one of its val and two others."""
    folder = voc / "benchmark_RELEASE/dataset"
    (folder / "cls").mkdir(parents=True)
    (folder / "train.txt").write_text("2007_000032\n2008_000002\n")
    (folder / "val.txt").write_text("2007_000033\n2008_000003\n")
    for name in ("2007_000032", "2008_000002", "2007_000033", "2008_000003"):
        draw(f"VOC2012/JPEGImages/{name}.jpg")
        outline = scipy.sparse.csc_array(np.eye(*SIZE, dtype=bool))
        content = {
            "Boundaries": np.array([[outline]], object),
            "Segmentation": values(0, int(name[-1])),
            "CategoriesPresent": np.array([[int(name[-1])]], np.uint8),
        }
        path = folder / "cls" / f"{name}.mat"
        scipy.io.savemat(path, {"GTcls": content}, do_compression=True)
    return folder


def test_voc_with_sbd_itself(voc, sbd, read, values):
    _, found = read(f"voc:{voc}")
    assert list(found["train"]) == ["2007_000032", "2007_000039", "2008_000002", "2008_000003"]
    assert list(found["val"]) == ["2007_000033"]
    # VOC's own mask, with its border, and SBD's.
    np.testing.assert_array_equal(found["train"]["2007_000032"], values(0, 1, 255))
    np.testing.assert_array_equal(found["train"]["2008_000003"], values(0, 3))
    (sbd / "cls/2008_000003.mat").unlink()
    with pytest.raises(data.DatasetError, match=r"2008_000003.mat, which val.txt lists, is miss"):
        data.audit(f"voc:{voc}")


def big_endian(size: int) -> bytes:
    """A MATLAB file of the other byte order that unpacks to so many bytes."""
    packed = zlib.compress(bytes(size))
    return bytes(126) + b"MI" + struct.pack(">II", 15, len(packed)) + packed


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "unreadable file"),
        (big_endian(2**25), "image too large"),
        (b"MATLAB 5.0 MAT-file" + bytes(200), "unreadable file"),
        ({"GTinst": {"Segmentation": np.ones(SIZE, np.uint8)}}, "KeyError 'GTcls'"),
        ({"GTcls": np.ones(SIZE, np.uint8)}, "unreadable file"),
        ({"GTcls": {"Segmentation": np.ones(SIZE)}}, "label map not one-channel"),
        ({"GTcls": {"Segmentation": np.ones((2, 3, 4), np.uint8)}}, "label map not one-channel"),
        ({"GTcls": {"Segmentation": np.ones((6000, 6000), np.uint8)}}, "image too large"),
    ],
)
def test_wrong_masks_of_sbd(voc, sbd, content, message):
    path = sbd / "cls/2008_000003.mat"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        scipy.io.savemat(path, content, do_compression=True)
    with pytest.raises(data.DatasetError, match=message) as caught:
        data.audit(f"voc:{voc}")
    assert "dataset/cls/2008_000003.mat: " in str(caught.value)
    assert "1 fault\n" in str(caught.value)


def test_other_classes_in_the_layout_of_voc_are_not_named_after_its_own(voc):
    root = voc / "VOC2012"
    other_first = "".join(f"{name}:0,0,0::\n" for name in ("wall", *CLASSES[1:]))
    (root / "labelmap.txt").write_text(other_first)
    with pytest.raises(data.DatasetError, match="lists the classes wall, aeroplane"):
        data.audit(f"voc:{voc}")
    (root / "labelmap.txt").write_text("background:0,0,0::\ncar:128,0,0::\n")
    with pytest.raises(data.DatasetError, match="give .*VOC2012 without voc:") as caught:
        data.audit(f"voc:{voc}")
    assert "lists the classes background, car" in str(caught.value)
    (root / "ImageSets/Main").mkdir()
    assert data.open_source(root).info.classes == ("background", "car")


def test_an_empty_list_is_a_fault(voc):
    (voc / "VOC2012/ImageSets/Segmentation/train.txt").write_text("\n")
    with pytest.raises(data.DatasetError, match="train: no images"):
        data.audit(f"voc:{voc}")


def test_cityscapes(tmp_path, draw, values, read):
    numbers = (7, 33, 0, 26, 255)  # road, bicycle, unlabeled, car, license plate
    for split, city in (("train", "aachen"), ("val", "lindau")):
        name = f"{split}/{city}/{city}_000000_000019"
        draw(f"leftImg8bit/{name}_leftImg8bit.png")
        draw(f"gtFine/{name}_gtFine_labelIds.png", values(*numbers))
        for other in ("instanceIds", "labelTrainIds"):  # not read
            draw(f"gtFine/{name}_gtFine_{other}.png", values(3, 3))
    source, found = read(f"cityscapes:{tmp_path}")
    assert source.splits == ("train", "val")
    assert source.info.classes[:2] == ("road", "sidewalk")
    assert source.info.colors[13] == (0, 0, 142)
    label = found["val"]["lindau/lindau_000000_000019"]
    np.testing.assert_array_equal(label, values(0, 18, 255, 13, 255))
    assert len(cityscapes.IDS) == 19


def test_cityscapes_with_the_labels_of_training(tmp_path, draw, values, read):
    for split in ("train", "val"):
        draw(f"leftImg8bit/{split}/ulm/ulm_0_leftImg8bit.png")
        draw(f"gtFine/{split}/ulm/ulm_0_gtFine_labelTrainIds.png", values(0, 18, 255))
    _, found = read(f"cityscapes:{tmp_path}")
    np.testing.assert_array_equal(found["val"]["ulm/ulm_0"], values(0, 18, 255))


@pytest.fixture
def ade20k(tmp_path, draw, values):
    for folder, name in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000001")):
        draw(f"ADEChallengeData2016/images/{folder}/{name}.jpg")
        draw(f"ADEChallengeData2016/annotations/{folder}/{name}.png", values(0, 1, 150))
    rows = [f"{k}\t0.1\t10\t10\tclass {k}, other name" for k in range(1, 151)]
    info = tmp_path / "ADEChallengeData2016/objectInfo150.txt"
    info.write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows]))
    return tmp_path


def test_ade20k(ade20k, read, values):
    source, found = read(f"ade20k:{ade20k}")
    assert source.info.num_classes == 150
    assert source.info.classes[149] == "class 150"
    np.testing.assert_array_equal(found["val"]["ADE_val_00000001"], values(255, 0, 149))


def test_camvid_in_two_folders_has_the_splits_of_segnet(tmp_path, draw, read):
    colors = [bytes.fromhex(c) for _, united in camvid.CLASSES.values() for c in united.split()]
    assert len({*colors, bytes(3)}) == 32  # with void
    row = np.repeat([(128, 64, 128), (192, 0, 64), (0, 0, 0), (64, 192, 0)], 4, 0)
    names = {"0006R0_f00930": "train", "0016E5_07957": "train", "0016E5_07959": "val"}
    names |= {"0001TP_008520": "train", "0001TP_008550": "test", "Seq05VD_f00000": "test"}
    for name in names:
        draw(f"701_StillsRaw_full/{name}.png")
        draw(f"LabeledApproved_full/{name}_L.png", np.tile(row, (12, 1, 1)))
    source, found = read(f"camvid:{tmp_path}")
    assert {name: split for split, part in found.items() for name in part} == names
    expected = np.repeat([3, 3, 255, 1], 4)  # road, lane markings, void, wall
    np.testing.assert_array_equal(found["val"]["0016E5_07959"][0], expected)
    assert source.info.classes[3] == "road"


def test_camvid_in_folders_of_splits(tmp_path, draw, read):
    for split, name in (("train", "0016E5_07959"), ("val", "0006R0_f00930")):
        draw(f"{split}/{name}.png")
        draw(f"{split}_labels/{name}_L.png", np.full((12, 16, 3), 128))
    _, found = read(f"camvid:{tmp_path}")
    names = {split: list(part) for split, part in found.items()}
    assert names == {"train": ["0016E5_07959"], "val": ["0006R0_f00930"]}
    assert not found["val"]["0006R0_f00930"].any()  # sky


def test_a_colour_that_camvid_has_not(tmp_path, draw):
    draw("train/a.png")
    draw("train_labels/a_L.png", np.full((12, 16, 3), 127))
    with pytest.raises(data.DatasetError, match=r"colour without a class.*\n.*\[127, 127, 127\]"):
        data.audit(f"camvid:{tmp_path}")


@pytest.mark.parametrize(
    "reader, missing",
    [
        ("voc", ("ImageSets/Segmentation/train.txt", "JPEGImages", "SegmentationClass")),
        ("cityscapes", ("leftImg8bit/train", "gtFine/train")),
        ("ade20k", ("images/training", "annotations/training", "objectInfo150.txt")),
        ("camvid", ("LabeledApproved_full", "701_StillsRaw_full")),
        ("coco", ("annotations/instances_train2017.json",)),
        ("labelme", ("no LabelMe file .json",)),
        ("cvat", ("annotations.xml",)),
    ],
)
def test_a_wrong_folder_says_what_is_missing(tmp_path, reader, missing):
    (tmp_path / "holiday").mkdir()
    with pytest.raises(data.DatasetError) as caught:
        data.open_source(f"{reader}:{tmp_path}")
    for name in missing:
        assert name in str(caught.value)
    with pytest.raises(data.DatasetError, match="is not a folder"):
        data.open_source(f"{reader}:{tmp_path}/none")
