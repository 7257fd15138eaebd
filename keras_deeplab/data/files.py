from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from keras_deeplab.data.faults import Faults
from keras_deeplab.data.formats import IMAGE_SUFFIXES, LABEL_SUFFIXES

SPLITS = ("train", "val", "test")
# What operating systems leave in folders; hidden files (a leading dot) are passed over as well.
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


def find_splits(root: Path) -> tuple[str, ...]:
    """Returns the splits that have a folder, in the order train, val, test."""
    return tuple(split for split in SPLITS if (root / split).is_dir())


def list_split(root: Path, split: str, faults: Faults) -> SplitFiles:
    """Lists the files of a split and adds what is wrong with their names to `faults`."""
    files = SplitFiles()
    folders = [root / split / "images", root / split / "labels"]
    missing = [folder for folder in folders if not folder.is_dir()]
    for folder in missing:
        faults.add("missing folder", f"{folder.relative_to(root).as_posix()} is not there")
    lossy: set[str] = set()
    if folders[0] not in missing:
        files.images, _ = _list_folder(root, folders[0], IMAGE_SUFFIXES, faults)
    if folders[1] not in missing:
        files.labels, lossy = _list_folder(root, folders[1], LABEL_SUFFIXES, faults)
    if missing:
        return files
    if not files.images and not files.labels:
        faults.add("empty split", f"{split}: no images and no label maps")
    for name in sorted(files.images.keys() - files.labels.keys() - lossy):
        faults.add("image without label", files.images[name][0].relative_to(root).as_posix())
    for name in sorted(files.labels.keys() - files.images.keys()):
        faults.add("label without image", files.labels[name][0].relative_to(root).as_posix())
    return files


def check_root(root: Path, faults: Faults) -> None:
    """Adds a root without splits, and split folders of other names, to `faults`."""
    for folder in sorted(root.iterdir()):
        looks_like_split = (folder / "images").is_dir() or (folder / "labels").is_dir()
        if folder.name not in SPLITS and looks_like_split:
            faults.add("unknown split folder", folder.name)
    if not find_splits(root):
        faults.add("missing folder", "none of train, val, test is there")


def visible(folder: Path) -> list[Path]:
    """What a folder holds, sorted, without what operating systems leave in it."""
    return sorted(
        path
        for path in folder.iterdir()
        if not path.name.startswith(".") and path.name.lower() not in SYSTEM_FILES
    )


def _list_folder(
    root: Path, folder: Path, suffixes: tuple[str, ...], faults: Faults
) -> tuple[dict[str, list[Path]], set[str]]:
    """Returns the files by name, and the names of JPEG files where those are not allowed."""
    listed: dict[str, list[Path]] = {}
    lossy = set()
    for path in visible(folder):
        shown = path.relative_to(root).as_posix()
        if path.is_dir():
            faults.add("unsupported file", f"{shown} is a folder")
        elif path.suffix.lower() in suffixes:
            listed.setdefault(path.stem, []).append(path)
        elif path.suffix.lower() in (".jpg", ".jpeg"):
            lossy.add(path.stem)
            faults.add("JPEG label map", shown)
        else:
            faults.add("unsupported file", shown)
    for paths in listed.values():
        if len(paths) > 1:
            where = folder.relative_to(root).as_posix()
            faults.add("duplicate name", f"{where}: {', '.join(path.name for path in paths)}")
    return listed, lossy
