"""The files of a data set in a folder."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path

from keras_deeplab.data.faults import FileFault
from keras_deeplab.data.formats import FORMATS, IMAGE_SUFFIXES, LABEL_SUFFIXES, PIXEL_SUFFIXES
from keras_deeplab.data.paths import absolute, is_remote
from keras_deeplab.names import first_few

SPLITS = ("train", "val", "test")
VOC_LISTS = "ImageSets/Segmentation"  # of the images of each split
# Names of folders, in any case.
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "img_dir", "jpegimages")
LABEL_FOLDERS = ("labels", "label", "masks", "mask", "annotations", "annotation", "ann_dir", "gt")
LABEL_FOLDERS += ("segmentations", "segmentation", "labels_png", "groundtruth", "ground_truth")
LABEL_FOLDERS += ("annot",)
# Other common names of splits.
SYNONYMS = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}
# Files of operating systems; hidden files (with a leading dot) are skipped as well.
SYSTEM_FILES = ("thumbs.db", "desktop.ini")
COCO_FILES = r"instances_.*\.json|result\.json|.*coco.*\.json"  # of annotation tools
# With JPEG files, whose content is refused later.
LISTED_LABELS = (*LABEL_SUFFIXES, *FORMATS["JPEG"].suffixes)


@dataclass
class SplitFiles:
    """The files of one split by name (the file name without its ending), faults and warnings."""

    images: dict[str, Path] = field(default_factory=dict)
    labels: dict[str, Path] = field(default_factory=dict)
    faults: list[FileFault] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def leave_out(self, names: Iterable[str], annotations: str) -> None:
        """Adds a warning of images that annotations do not list."""
        names = sorted(names)
        if names:
            text = f"{len(names)} images that {annotations} does not list are left out"
            self.warnings.append(f"{text}: {first_few(names)}")

    def check(self, root: Path, split: str) -> SplitFiles:
        """Adds the faults of an empty split and of files without a partner; returns itself."""
        if not self.images and not self.labels:
            self.faults.append(FileFault("empty split", f"{split}: no images and no label maps"))
        for kind, found, others in (
            ("image without label", self.images, self.labels),
            ("label without image", self.labels, self.images),
        ):
            alone = sorted(found.keys() - others.keys())
            self.faults += [FileFault(kind, shown(root, found[name])) for name in alone]
        return self

    def pairs(self) -> list[tuple[str, Path, Path]]:
        """Returns `(name, image, label)` of every name that has both, sorted by name."""
        names = sorted(self.images.keys() & self.labels.keys())
        return [(name, self.images[name], self.labels[name]) for name in names]


def list_split(root: Path, split: str) -> SplitFiles:
    """Lists the files of a split."""
    files = SplitFiles()
    parent = _only_folder(root, root, split, files.faults)
    if parent is None:
        return files
    images = _only_folder(root, parent, _one_of(IMAGE_FOLDERS, parent), files.faults)
    labels = _only_folder(root, parent, _one_of(LABEL_FOLDERS, parent), files.faults)
    if images:
        files.images = _list_folder(root, images, PIXEL_SUFFIXES, files.faults)
    if labels:
        files.labels = _list_folder(root, labels, LISTED_LABELS, files.faults)
    return files.check(root, split) if images and labels else files


def _one_of(names: Sequence[str], parent: Path) -> str:
    """The one of the names that a folder in `parent` has; the first of none or of several."""
    found = [name for name in names if folders_named(parent, name)]
    return found[0] if len(found) == 1 else names[0]


def _only_folder(root: Path, parent: Path, name: str, faults: list[FileFault]) -> Path | None:
    found = folders_named(parent, name)
    if not found:
        text = f"{shown(root, parent / name)} is not there; "
        text += f"{shown(root, parent)} holds {contents(parent)}"
        if others := _other_formats(root):
            text += f"; give {' or '.join(others)} instead"
        faults.append(FileFault("missing folder", text))
    elif len(found) > 1:
        names = ", ".join(shown(root, path) for path in found)
        faults.append(FileFault("duplicate name", f"folders {names} differ only in case"))
    return found[0] if len(found) == 1 else None


def _list_folder(
    root: Path, folder: Path, suffixes: tuple[str, ...], faults: list[FileFault]
) -> dict[str, Path]:
    listed: dict[str, Path] = {}
    for path in visible(folder):
        # Accents in one form (NFC); file systems keep either.
        name = unicodedata.normalize("NFC", path.stem)
        if path.is_dir():
            faults.append(FileFault("unsupported file", f"{shown(root, path)} is a folder"))
        elif not is_utf8(path.name):
            faults.append(FileFault("file name not UTF-8", shown(root, path)))
        elif path.suffix.lower() not in suffixes:
            faults.append(FileFault("unsupported file", shown(root, path)))
        elif name in listed:
            both = f"{shown(root, folder)}: {listed[name].name}, {path.name}"
            faults.append(FileFault("duplicate name", both))
        else:
            listed[name] = path
    return listed


def check_root(root: Path) -> list[FileFault]:
    """Returns the faults of folders that look like splits of other names."""
    others = [folder for folder in _folders(root) if folder.name.lower() not in SPLITS]
    return [
        FileFault("unknown split folder", folder.name)
        for folder in others
        if folder.name.lower() in SYNONYMS
        or {path.name.lower() for path in folder.iterdir()} & {*IMAGE_FOLDERS, *LABEL_FOLDERS}
    ]


def shown(root: Path, path: Path) -> str:
    """Returns a path below the root for messages."""
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def split_named(name: str) -> str | None:
    """Returns the split that a name stands for: `val` for "Validation", "val2017", "val_set"."""
    name = re.sub(r"[_-]?((19|20)\d\d|set)$", "", name.lower())
    return name if name in SPLITS else SYNONYMS.get(name)


# As a key, as pathlib compares paths slowly.
by_parts = attrgetter("parts")


def visible(folder: Path) -> list[Path]:
    """Returns the entries of a folder, sorted, without hidden and system files."""
    paths = (
        path
        for path in folder.iterdir()
        if not path.name.startswith(".") and path.name.lower() not in SYSTEM_FILES
    )
    return sorted(paths, key=by_parts)


def entries_named(parent: Path, name: str) -> list[Path]:
    """Returns the entries of a folder whose name is `name` in any case; `name` is lower case."""
    return sorted(path for path in parent.iterdir() if path.name.lower() == name)


def folders_named(parent: Path, name: str) -> list[Path]:
    """Returns the subfolders whose name is `name` in any case."""
    return [path for path in entries_named(parent, name) if path.is_dir()]


def find_splits(root: Path) -> tuple[str, ...]:
    """Returns the existing splits in the order train, val, test."""
    return tuple(split for split in SPLITS if folders_named(root, split))


def is_utf8(text: str) -> bool:
    """Whether a file name, or a path, is valid UTF-8; TensorFlow and JSON need it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def contents(folder: Path) -> str:
    """Returns the names of the first entries of a folder."""
    return first_few([path.name for path in visible(folder)]) or "nothing"


def proposal(root: Path) -> str:
    """Describes a folder without splits, and names the data set in it or around it."""
    root = absolute(root)
    near = _folders(root)
    near += [root.parent] * (root.name.lower() in SPLITS)
    near += [root.parent.parent] * (root.name.lower() in ("images", "labels"))
    found = [str(folder) for folder in near if any(map(_is_split, _folders(folder)))]
    found += _other_formats(root)
    advice = (
        f"Give {' or '.join(found[:3])} instead"
        if found
        else "Put images into train/images and val/images, and the label map NAME.png of each "
        "image NAME.jpg into train/labels and val/labels"
    )
    return f"{root} holds {contents(root)}; there is no folder train, val or test. {advice}"


def _other_formats(root: Path) -> list[str]:
    """What opens a folder that looks like a data set in another format."""
    files = [path for path in visible(root) if path.is_file()]
    outlines = [path for path in files if path.suffix.lower() == ".json"]
    images = {path.stem for path in files if path.suffix.lower() in IMAGE_SUFFIXES}
    annotations = visible(root / "annotations") if (root / "annotations").is_dir() else []
    found = [f"voc:{root}"] * is_devkit(root)
    parts = [
        path for folder in _folders(root) if split_named(folder.name) for path in visible(folder)
    ]
    of_tools = any(re.fullmatch(COCO_FILES, path.name) for path in files + parts)
    found += [f"coco:{root}"] * (of_tools or any(path.suffix == ".json" for path in annotations))
    prepared = root if is_remote(root) else root.absolute()  # a name alone is TFDS' own
    found += [f"tfds:{prepared}"] * (root / "dataset_info.json").is_file()
    found += [f"cvat:{root}"] * any(map(is_cvat, files))
    found += [f"labelme:{root}"] * any(path.stem in images for path in outlines)
    lists = [path for path in files if path.suffix.lower() == ".csv"]
    return found + [str(path) for path in lists if not is_remote(path) and _lists_files(path)]


def is_devkit(root: Path) -> bool:
    """Whether a folder is VOC2012 itself, and not another data set in its layout."""
    entries = ("ImageSets/Main", "SegmentationClassAug")  # of other tasks; of SBD
    is_whole = any((root / entry).is_dir() for entry in entries)
    is_own = (root / "labelmap.txt").is_file()
    return is_whole and not is_own and (root / VOC_LISTS / "train.txt").is_file()


def _lists_files(path: Path) -> bool:
    """Whether the beginning of a CSV file has a cell that names a file."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            rows = [re.split("[,;]", row) for row in file.read(2000).replace("\\", "/").split("\n")]
    except OSError:
        return False
    cells = [cell for row in rows if len(row) <= 3 for cell in row]
    return any(os.path.isfile(path.parent / cell.strip(' "')) for cell in cells)


def is_cvat(path: Path) -> bool:
    """Whether a file is an export of CVAT; other tools' XML files have an `<annotation>`."""
    if path.suffix.lower() != ".xml" or not path.is_file():
        return False
    with path.open("rb") as file:
        return b"<annotations>" in file.read(1000)


def folder_of(path: Path) -> Path:
    """Returns the folder of a data set from that of one of its annotation files."""
    return path.parent.parent if path.parent.name == "annotations" else path.parent


def _folders(parent: Path) -> list[Path]:
    return [path for path in visible(parent) if path.is_dir()]


def _is_split(folder: Path) -> bool:
    roles = (IMAGE_FOLDERS, LABEL_FOLDERS)
    is_pair = all(any(folders_named(folder, name) for name in names) for names in roles)
    return folder.name.lower() in SPLITS and is_pair
