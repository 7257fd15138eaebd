"""The files of a data set in a folder."""

from __future__ import annotations

import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from keras_deeplab.data.faults import Faults
from keras_deeplab.data.formats import IMAGE_SUFFIXES, LABEL_SUFFIXES

SPLITS = ("train", "val", "test")
# Other common names of splits.
SPLIT_SYNONYMS = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}
# Files of operating systems; hidden files (with a leading dot) are skipped as well.
SYSTEM_FILES = ("thumbs.db", "desktop.ini")


@dataclass
class SplitFiles:
    """The files of one split by name (the file name without its ending)."""

    images: dict[str, list[Path]] = field(default_factory=dict)
    labels: dict[str, list[Path]] = field(default_factory=dict)

    def pairs(self) -> list[tuple[str, Path, Path]]:
        """Returns `(name, image, label)` of every name that has both, sorted by name."""
        names = sorted(self.images.keys() & self.labels.keys())
        return [(name, self.images[name][0], self.labels[name][0]) for name in names]


def entries_named(parent: Path, name: str) -> list[Path]:
    """Returns the entries of a folder whose name is `name` in any case; `name` is lower case."""
    return sorted(path for path in parent.iterdir() if path.name.lower() == name)


def folders_named(parent: Path, name: str) -> list[Path]:
    """Returns the subfolders whose name is `name` in any case; `name` is lower case."""
    return [path for path in entries_named(parent, name) if path.is_dir()]


def find_splits(root: Path) -> tuple[str, ...]:
    """Returns the existing splits in the order train, val, test."""
    return tuple(split for split in SPLITS if folders_named(root, split))


def contents(folder: Path) -> str:
    """Describes the contents of a folder, such as `the folders a, b, 3 .jpg files`."""
    paths = visible(folder)
    folders = [path.name for path in paths if path.is_dir()]
    endings = Counter(path.suffix for path in paths if not path.is_dir())
    shown = ", ".join(folders[:10]) + f" and {len(folders) - 10} others" * (len(folders) > 10)
    parts = [f"the folder{'s' * (len(folders) > 1)} {shown}"] if folders else []
    parts += [
        f"{count} {ending or 'unnamed'} file{'s' * (count > 1)}"
        for ending, count in endings.most_common(5)
    ]
    return ", ".join(parts) or "nothing"


def _only_folder(root: Path, parent: Path, name: str, faults: Faults) -> Path | None:
    found = folders_named(parent, name)
    if not found:
        shown = (parent / name).relative_to(root).as_posix()
        holder = parent.relative_to(root).as_posix()
        faults.add("missing folder", f"{shown} is not there; {holder} holds {contents(parent)}")
    elif len(found) > 1:
        shown = ", ".join(path.relative_to(root).as_posix() for path in found)
        faults.add("duplicate name", f"folders {shown} differ only in case")
    return found[0] if len(found) == 1 else None


def list_split(root: Path, split: str, faults: Faults) -> SplitFiles:
    """Lists the files of a split and adds the faults of their names to `faults`."""
    files = SplitFiles()
    parent = _only_folder(root, root, split, faults)
    if parent is None:
        return files
    images = _only_folder(root, parent, "images", faults)
    labels = _only_folder(root, parent, "labels", faults)
    lossy: set[str] = set()
    if images:
        files.images, _ = _list_folder(root, images, IMAGE_SUFFIXES, faults)
    if labels:
        files.labels, lossy = _list_folder(root, labels, LABEL_SUFFIXES, faults)
    if not images or not labels:
        return files
    if not files.images and not files.labels:
        faults.add("empty split", f"{split}: no images and no label maps")
    for name in sorted(files.images.keys() - files.labels.keys() - lossy):
        faults.add("image without label", files.images[name][0].relative_to(root).as_posix())
    for name in sorted(files.labels.keys() - files.images.keys()):
        faults.add("label without image", files.labels[name][0].relative_to(root).as_posix())
    return files


def check_root(root: Path, faults: Faults) -> None:
    """Adds folders that look like splits of other names to `faults`."""
    for folder in filter(Path.is_dir, visible(root)):
        looks_like_split = folders_named(folder, "images") or folders_named(folder, "labels")
        name = folder.name.lower()
        split = SPLIT_SYNONYMS.get(name)
        if split:
            faults.add("unknown split folder", f"{folder.name}; rename it to {split}")
        elif name not in SPLITS and looks_like_split:
            faults.add("unknown split folder", folder.name)


def visible(folder: Path) -> list[Path]:
    """The entries of a folder, sorted, without hidden and system files."""
    return sorted(
        path
        for path in folder.iterdir()
        if not path.name.startswith(".") and path.name.lower() not in SYSTEM_FILES
    )


def is_utf8(text: str) -> bool:
    """Whether a file name, or a path, is valid UTF-8; TensorFlow and JSON need it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def one_form(name: str) -> str:
    """Returns a name with its accents in one form (NFC); file systems keep either."""
    return unicodedata.normalize("NFC", name)


def _list_folder(
    root: Path, folder: Path, suffixes: tuple[str, ...], faults: Faults
) -> tuple[dict[str, list[Path]], set[str]]:
    """Returns the files by name, and the names of JPEG files that are not allowed."""
    listed: dict[str, list[Path]] = {}
    lossy = set()
    for path in visible(folder):
        shown = path.relative_to(root).as_posix()
        if path.is_dir():
            faults.add("unsupported file", f"{shown} is a folder")
        elif not is_utf8(path.name):
            faults.add("file name not UTF-8", shown)
        elif path.suffix.lower() in suffixes:
            listed.setdefault(one_form(path.stem), []).append(path)
        elif path.suffix.lower() in (".jpg", ".jpeg"):
            lossy.add(one_form(path.stem))
            faults.add("JPEG label map", shown)
        else:
            faults.add("unsupported file", shown)
    for paths in listed.values():
        if len(paths) > 1:
            where = folder.relative_to(root).as_posix()
            faults.add("duplicate name", f"{where}: {', '.join(path.name for path in paths)}")
    return listed, lossy
