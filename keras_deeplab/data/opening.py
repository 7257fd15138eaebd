"""Opening a data set by its name."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from keras_deeplab import names, validation
from keras_deeplab.data.folder import Folder
from keras_deeplab.data.layout import (
    IMAGE_FOLDERS,
    LABEL_FOLDERS,
    SPLITS,
    find_splits,
    folder_of,
    folders_named,
    is_cvat,
)
from keras_deeplab.data.paths import absolute, data_path, is_remote
from keras_deeplab.data.readers.ade20k import Ade20k
from keras_deeplab.data.readers.camvid import CamVid
from keras_deeplab.data.readers.cityscapes import Cityscapes
from keras_deeplab.data.readers.coco import Coco
from keras_deeplab.data.readers.cvat import Cvat
from keras_deeplab.data.readers.labelme import LabelMe
from keras_deeplab.data.readers.other_folders import ListedFiles, OtherFolder
from keras_deeplab.data.readers.voc import Voc
from keras_deeplab.data.shapes import Shapes
from keras_deeplab.data.source import Source
from keras_deeplab.data.tfds_source import open_tfds

# What `NAME:PATH` opens.
READERS: dict[str, Callable[[str], Source]] = {
    "voc": Voc,
    "cityscapes": Cityscapes,
    "ade20k": Ade20k,
    "camvid": CamVid,
    "coco": Coco,
    "labelme": LabelMe,
    "cvat": Cvat,
    "tfds": open_tfds,
}
LISTS = (".csv", ".txt")


def open_source(name: Source | str | os.PathLike) -> Source:
    """Opens a data set by name or by its path; a `data.Source` is returned as it is.

    Args:
        name: `"shapes"` for the embedded data set; the path of a folder as in `data.Folder`, or in
            another layout (`images` and `masks`, or `NAME_mask.png` beside `NAME.jpg`); the path of
            a .csv or .txt file with an image and its label map in each row; or a reader's name and
            a path, such as `"voc:VOCdevkit"`: `voc`, `cityscapes`, `ade20k`, `camvid`, `coco`,
            `labelme` or `cvat`; or `"tfds:NAME[:CONFIG][/SPLIT]"` or `"tfds:FOLDER"` for a data set
            of TensorFlow Datasets, with arguments of `data.TFDS` such as `"tfds:NAME?val=test"`.
            Paths may be those of `tf.io.gfile`, such as `"gs://bucket/folder"`.

    Raises:
        ValueError: If it is none of these.
        DatasetError: If the path has not the layout; the message says what is missing.

    Example:

    >>> keras_deeplab.data.open_source("shapes").info.num_classes
    6
    """
    if isinstance(name, Source):
        return name
    if not isinstance(name, str | os.PathLike):
        raise validation.error("source", "a data.Source, or the name or path of a data set", name)
    if str(name) == "shapes":
        return Shapes()
    reader = re.fullmatch(r"(\w{2,}):(.*)", str(name))  # a single letter is a Windows drive
    if reader and not is_remote(name) and not Path(name).exists():
        scheme, rest = reader.groups()
        if scheme not in READERS:
            rule = f"a folder, or one of {', '.join(f'{known}:PATH' for known in READERS)}"
            raise ValueError(
                f"{validation.error('name', rule, str(name))}.{names.suggestion(scheme, READERS)}"
            )
        return READERS[scheme](rest)
    path = data_path(name)
    if path.suffix.lower() in LISTS and path.is_file():
        return ListedFiles(path)
    if not path.is_dir():
        rule = (
            "'shapes', an existing folder root/{train,val}/{images,labels}, a .csv or .txt list, "
            f"or one of {', '.join(READERS)} with a path, such as voc:PATH"
        )
        raise validation.error("name", rule, str(name), _advice(path))
    whole = absolute(path)
    is_part = whole.name.lower() in SPLITS and _is_plain(whole.parent)
    is_part = is_part and bool({"images", "labels"} & {at.name.lower() for at in path.iterdir()})
    is_other = not is_part and not _is_plain(path) and OtherFolder.fits(path)
    return OtherFolder(path) if is_other else Folder(path)


def _advice(path: Path) -> str:
    """What to give in place of a path that is not a folder."""
    if not path.exists():
        return f"There is no {path}"
    if path.name in ("dataset.json", "splits.json"):
        return f"Give {path.parent}"
    reader = "coco:" * (path.suffix.lower() == ".json") or "cvat:" * is_cvat(path)
    return f"Give {reader}{folder_of(path)}" if reader else ""


def _is_plain(root: Path) -> bool:
    """Whether a split of a folder has `images` or `labels`, or images and label maps."""
    folders = [at for split in find_splits(root) for at in folders_named(root, split)]
    found = [{path.name.lower() for path in folder.iterdir()} for folder in folders]
    return any(
        names & {"images", "labels"} or (names & {*IMAGE_FOLDERS} and names & {*LABEL_FOLDERS})
        for names in found
    )
