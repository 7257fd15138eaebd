"""PASCAL VOC 2012 segmentation, with the additional annotations of SBD."""

from __future__ import annotations

import os
from pathlib import Path

from keras_deeplab.data.faults import FileFault
from keras_deeplab.data.file_source import FileSource
from keras_deeplab.data.layout import SplitFiles
from keras_deeplab.data.readers.listing import check_entries, inner_folder, read_lines
from keras_deeplab.data.source import DatasetInfo

CLASSES = ("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat")
CLASSES += ("chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant")
CLASSES += ("sheep", "sofa", "train", "tvmonitor")
LISTS = Path("ImageSets/Segmentation")
IMAGES = Path("JPEGImages")
MASKS = Path("SegmentationClass")
# SBD's masks as people distribute them: PNG, with those of VOC among them.
MORE_MASKS = Path("SegmentationClassAug")
MORE_NAMES = ("train_aug.txt", "trainaug.txt")
LAYOUT = "VOC2012 with ImageSets/Segmentation, JPEGImages and SegmentationClass"


class Voc(FileSource):
    """PASCAL VOC 2012 segmentation as its archive unpacks: 21 classes, borders ignored.

    The splits are the lists train.txt and val.txt in ImageSets/Segmentation. If there are
    SegmentationClassAug and a list train_aug.txt (or trainaug.txt), "train" is that list: the
    10,582 images with the annotations of SBD that the DeepLab papers use. SBD's own .mat files are
    not read.

    Args:
        root: VOCdevkit, or the folder VOC2012 in it.

    Raises:
        DatasetError: If a folder is missing; the message names all that are.
    """

    info = DatasetInfo(CLASSES)

    def __init__(self, root: str | os.PathLike) -> None:
        super().__init__(root)
        self.root = inner_folder(self.root, ("VOC2012", "VOCdevkit/VOC2012"), LISTS)
        check_entries(self.root, LAYOUT, map(str, (LISTS / "train.txt", IMAGES, MASKS)))

    @property
    def splits(self) -> tuple[str, ...]:
        """`train` and `val`, as far as there are lists of them."""
        lists = self.root / LISTS
        return tuple(split for split in ("train", "val") if (lists / f"{split}.txt").exists())

    def list_files(self, split: str) -> SplitFiles:
        """Lists the files that a list of the devkit names."""
        listed, masks = self.root / LISTS / f"{split}.txt", self.root / MASKS
        more = [self.root / LISTS / name for name in MORE_NAMES]
        more = [path for path in more if path.exists()]
        if split == "train" and more and (self.root / MORE_MASKS).exists():
            listed, masks = more[0], self.root / MORE_MASKS
        files = SplitFiles()
        for line in read_lines(listed):
            # Some lists name the files: /JPEGImages/X.jpg /SegmentationClassAug/X.png
            name = Path(line.split()[0]).stem
            for found, path, kind in (
                (files.images, self.root / IMAGES / f"{name}.jpg", "label without image"),
                (files.labels, masks / f"{name}.png", "image without label"),
            ):
                if path.exists():
                    found[name] = path
                else:
                    text = f"{path.relative_to(self.root)}, which {listed.name} lists, is missing"
                    files.faults.append(FileFault(kind, text))
        return files
