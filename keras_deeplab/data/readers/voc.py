"""PASCAL VOC 2012 segmentation, with the additional annotations of SBD."""

from __future__ import annotations

import os
from collections.abc import Container
from pathlib import Path

import numpy as np

from keras_deeplab.data.class_lists import read_class_list
from keras_deeplab.data.decoding import check_regular
from keras_deeplab.data.faults import FileFault
from keras_deeplab.data.file_source import FileSource
from keras_deeplab.data.layout import VOC_LISTS, SplitFiles, shown
from keras_deeplab.data.readers.listing import check_entries, inner_folder, read_names
from keras_deeplab.data.readers.polygons import is_background
from keras_deeplab.data.readers.sbd import read_mask
from keras_deeplab.data.source import DatasetInfo

CLASSES = ("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat")
CLASSES += ("chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant")
CLASSES += ("sheep", "sofa", "train", "tvmonitor")
LISTS = Path(VOC_LISTS)
IMAGES = Path("JPEGImages")
MASKS = Path("SegmentationClass")
# SBD's masks as people distribute them: PNG, with those of VOC among them.
MORE_MASKS = Path("SegmentationClassAug")
MORE_NAMES = ("train_aug.txt", "trainaug.txt")
SBD = Path("benchmark_RELEASE/dataset")
LAYOUT = "VOC2012 with ImageSets/Segmentation, JPEGImages and SegmentationClass"


class Voc(FileSource):
    """PASCAL VOC 2012 segmentation as its archive unpacks: 21 classes, borders ignored.

    The splits are the lists train.txt and val.txt in ImageSets/Segmentation. If there are
    SegmentationClassAug and a list train_aug.txt (or trainaug.txt), "train" is that list: the
    10,582 images with the annotations of SBD that the DeepLab papers use. The same images are
    "train" if SBD's own benchmark_RELEASE is in the folder, in VOCdevkit or in VOC2012: those of
    train.txt with VOC's masks, and those of SBD that val.txt does not list with its .mat files.

    Args:
        root: VOCdevkit, or the folder VOC2012 in it.

    Raises:
        DatasetError: If a folder is missing; the message names all that are.
    """

    info = DatasetInfo(CLASSES)

    def __init__(self, root: str | os.PathLike) -> None:
        super().__init__(root)
        given = self.root
        self.root = inner_folder(self.root, ("VOC2012", "VOCdevkit/VOC2012"), LISTS)
        check_entries(self.root, LAYOUT, map(str, (LISTS / "train.txt", IMAGES, MASKS)))
        try:
            own = tuple(read_class_list(self.root).get("classes", CLASSES))
        except ValueError as error:
            raise self._error("bad class list", str(error)) from error
        if own[1:] != CLASSES[1:] or not is_background(own[0]):
            found = f"{self.root} lists the classes {', '.join(own)}"
            raise self._error("classes unclear", found, f"VOC's; give {self.root} without voc:")
        places = (folder / SBD for folder in (given, self.root, self.root.parent))
        self._sbd = next((place for place in places if (place / "cls").is_dir()), None)

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
        elif split == "train" and self._sbd:
            return self._with_sbd(self._listed(listed, masks))
        return self._listed(listed, masks)

    def _with_sbd(self, files: SplitFiles) -> SplitFiles:
        """Adds the images of both lists of SBD that are not those of validation."""
        check_entries(self.root, LAYOUT, (str(LISTS / "val.txt"),))
        check_entries(self._sbd, "SBD: cls, train.txt and val.txt", ("train.txt", "val.txt"))
        known = {*files.images, *read_names(self.root / LISTS / "val.txt")}
        for listed in (self._sbd / "train.txt", self._sbd / "val.txt"):
            more = self._listed(listed, self._sbd / "cls", ".mat", known)
            files.images |= more.images
            files.labels |= more.labels
            files.faults += more.faults
        return files

    def _listed(
        self, listed: Path, masks: Path, suffix: str = ".png", without: Container[str] = ()
    ) -> SplitFiles:
        files = SplitFiles()
        for name in read_names(listed):
            if name in without:
                continue
            for found, path, kind in (
                (files.images, self.root / IMAGES / f"{name}.jpg", "label without image"),
                (files.labels, masks / f"{name}{suffix}", "image without label"),
            ):
                if path.exists():
                    found[name] = path
                else:
                    text = f"{shown(self.root, path)}, which {listed.name} lists, is missing"
                    files.faults.append(FileFault(kind, text))
        return files

    def read_values(self, name: str, path: Path) -> np.ndarray:
        """Returns the values of a mask, also of SBD's."""
        if path.suffix == ".mat":
            check_regular(path)
            return read_mask(path.read_bytes())
        return super().read_values(name, path)
