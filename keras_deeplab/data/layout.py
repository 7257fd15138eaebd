"""The files of a data set in a folder, and suggestions for folders of another layout."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from keras_deeplab.data.faults import FileFault
from keras_deeplab.data.formats import IMAGE_SUFFIXES, LABEL_SUFFIXES

SPLITS = ("train", "val", "test")
# Other common names of splits.
SPLIT_SYNONYMS = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}
SPLIT_NAMES = (*SPLITS, *SPLIT_SYNONYMS)
# Files of operating systems; hidden files (with a leading dot) are skipped as well.
SYSTEM_FILES = ("thumbs.db", "desktop.ini")
# Common names of the folders of images and label maps, in lower case.
ROLES = {
    "images": ("images", "image", "imgs", "img", "photos", "jpegimages", "leftimg8bit", "input"),
    "labels": (
        *("labels", "label", "masks", "mask", "annotations", "annotation", "segmentationclass"),
        *("groundtruth", "ground_truth", "gt", "gtfine", "targets"),
    ),
}


@dataclass
class SplitFiles:
    """The files of one split by name (the file name without its ending), and their faults."""

    images: dict[str, Path] = field(default_factory=dict)
    labels: dict[str, Path] = field(default_factory=dict)
    faults: list[FileFault] = field(default_factory=list)

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
    images = _only_folder(root, parent, "images", files.faults)
    labels = _only_folder(root, parent, "labels", files.faults)
    if images:
        files.images = _list_folder(root, images, IMAGE_SUFFIXES, files.faults)
    if labels:  # with JPEG files, whose content is refused later
        files.labels = _list_folder(root, labels, (*LABEL_SUFFIXES, ".jpg", ".jpeg"), files.faults)
    if not images or not labels:
        return files
    if not files.images and not files.labels:
        files.faults.append(FileFault("empty split", f"{split}: no images and no label maps"))
    for kind, found, others in (
        ("image without label", files.images, files.labels),
        ("label without image", files.labels, files.images),
    ):
        alone = sorted(found.keys() - others.keys())
        files.faults += [FileFault(kind, shown(root, found[name])) for name in alone]
    return files


def _only_folder(root: Path, parent: Path, name: str, faults: list[FileFault]) -> Path | None:
    found = folders_named(parent, name)
    if not found:
        text = f"{shown(root, parent / name)} is not there"
        faults.append(
            FileFault("missing folder", f"{text}; {shown(root, parent)} holds {contents(parent)}")
        )
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


def check_root(root: Path) -> Iterator[FileFault]:
    """Yields faults for folders that look like splits of other names."""
    for folder in _folders(root):
        name = folder.name.lower()
        if name in SPLIT_SYNONYMS:
            advice = f"{folder.name}; rename it to {SPLIT_SYNONYMS[name]}"
            yield FileFault("unknown split folder", advice)
        elif name not in SPLITS and any(folders_named(folder, role) for role in ROLES):
            yield FileFault("unknown split folder", folder.name)


def shown(root: Path, path: Path) -> str:
    """Returns a path below the root for messages."""
    return path.relative_to(root).as_posix()


def visible(folder: Path) -> list[Path]:
    """Returns the entries of a folder, sorted, without hidden and system files."""
    return sorted(
        path
        for path in folder.iterdir()
        if not path.name.startswith(".") and path.name.lower() not in SYSTEM_FILES
    )


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
    """Describes the contents of a folder, such as `the folders a, b, 3 .jpg files`."""
    paths = visible(folder)
    folders = [path.name for path in paths if path.is_dir()]
    endings = Counter(path.suffix for path in paths if not path.is_dir())
    names = ", ".join(folders[:10]) + f" and {len(folders) - 10} others" * (len(folders) > 10)
    parts = [f"the folder{'s' * (len(folders) > 1)} {names}"] if folders else []
    parts += [
        f"{count} {ending or 'unnamed'} file{'s' * (count > 1)}"
        for ending, count in endings.most_common(5)
    ]
    return ", ".join(parts) or "nothing"


def proposal(root: Path) -> str:
    """Describes a folder without splits and suggests a fix."""
    found = f"{root} holds {contents(root)}; there is no folder train, val or test. "
    above = _above(Path(os.path.abspath(root)))  # not resolved, so that links keep their names
    if above:
        return f"{found}It is a part of a data set; give {above} instead"
    inside = [folder for folder in _folders(root) if any(map(_is_split, _folders(folder)))]
    if inside:
        return f"{found}Give {' or '.join(map(str, inside[:3]))} instead"
    moves = list(_moves(root))
    if moves:
        if not any("val/" in target for _, target in moves):
            moves.append(("then about a fifth of the pairs", "val/images and val/labels"))
        lines = "".join(f"\n      {source} to {target}" for source, target in moves)
        return f"{found}In this folder, move{lines}"
    return (
        f"{found}Put images into train/images and val/images, and the label map NAME.png of each "
        "image NAME.jpg into train/labels and val/labels"
    )


def _folders(parent: Path) -> list[Path]:
    return [path for path in visible(parent) if path.is_dir()]


def _is_split(folder: Path) -> bool:
    return folder.name.lower() in SPLITS and all(folders_named(folder, role) for role in ROLES)


def _above(root: Path) -> Path | None:
    """The data set that contains this split, or these images or labels of a split."""
    if _is_split(root) or (root.name.lower() in SPLITS and len(find_splits(root.parent)) > 1):
        return root.parent
    if root.name.lower() in ROLES and _is_split(root.parent):
        return root.parent.parent
    return None


def _moves(root: Path) -> Iterator[tuple[str, str]]:
    """What to move where, for images/SPLIT, SPLIT/img and images/* with their label maps."""
    outer = _folders(root)
    found: dict[tuple[str | None, str], list[Path]] = {}
    for folder in [*outer, *(inner for parent in outer for inner in _folders(parent))]:
        parts = shown(root, folder).lower().split("/")
        split = next((SPLIT_SYNONYMS.get(p, p) for p in parts if p in SPLIT_NAMES), None)
        role = next((role for role, names in ROLES.items() if set(names) & set(parts)), None)
        if role and (split is None) == (len(parts) == 1):
            found.setdefault((split, role), []).append(folder)
    for split in (*SPLITS, None):
        pair = [found.get((split, role), []) for role in ROLES]
        if not all(len(folders) == 1 for folders in pair):
            continue
        (images,), (labels,) = pair
        if split or any(path.suffix.lower() in IMAGE_SUFFIXES for path in visible(images)):
            yield shown(root, images), f"{split or 'train'}/images"
            yield shown(root, labels), f"{split or 'train'}/labels"
