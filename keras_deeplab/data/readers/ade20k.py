"""ADE20K in the release of the scene parsing benchmark."""

from __future__ import annotations

import os

from keras_deeplab.data.file_source import FileSource
from keras_deeplab.data.label_codes import LabelCode
from keras_deeplab.data.layout import SplitFiles
from keras_deeplab.data.readers.listing import (
    check_entries,
    files_below,
    inner_folder,
    read_lines,
)
from keras_deeplab.data.source import DatasetInfo

FOLDERS = {"train": "training", "val": "validation"}
NAMES = "objectInfo150.txt"
CLASSES = 150


class Ade20k(FileSource):
    """ADE20K as ADEChallengeData2016.zip unpacks: 150 classes, 0 (other objects) ignored.

    Args:
        root: ADEChallengeData2016, or the folder that holds it.

    Raises:
        DatasetError: If a folder or objectInfo150.txt, which names the classes, is missing.
    """

    code = LabelCode(tuple(range(1, CLASSES + 1)), (0,))

    def __init__(self, root: str | os.PathLike) -> None:
        super().__init__(root)
        self.root = inner_folder(self.root, ("ADEChallengeData2016",), "annotations")
        layout = "ADEChallengeData2016: images and annotations of training and validation, and "
        entries = (f"{kind}/training" for kind in ("images", "annotations"))
        check_entries(self.root, layout + NAMES, (*entries, NAMES))
        # Idx, Ratio, Train, Val and Name; the first of several names.
        lines = [line.split("\t") for line in read_lines(self.root / NAMES)[1:]]
        names = [line[-1].split(",")[0].strip() for line in lines]
        if len(names) != CLASSES:
            raise self._error("classes unclear", f"{NAMES} names {len(names)} of {CLASSES} classes")
        self._info = DatasetInfo(tuple(names))

    @property
    def info(self) -> DatasetInfo:
        """The 150 classes."""
        return self._info

    @property
    def splits(self) -> tuple[str, ...]:
        """`train` and `val`, as far as they are there."""
        images = self.root / "images"
        return tuple(split for split, name in FOLDERS.items() if (images / name).is_dir())

    def list_files(self, split: str) -> SplitFiles:
        """Lists images/training/X.jpg with annotations/training/X.png."""
        images, labels = (self.root / kind / FOLDERS[split] for kind in ("images", "annotations"))
        files = SplitFiles(
            {path.stem: path for path in files_below(images, (".jpg",))},
            {path.stem: path for path in files_below(labels, (".png",))},
        )
        return files.check(self.root, split)
