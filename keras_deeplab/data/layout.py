"""What to do with a folder that has no splits: the folder to give instead, or how to make them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from keras_deeplab.data.files import (
    IMAGE_SUFFIXES,
    LABEL_SUFFIXES,
    SPLIT_SYNONYMS,
    SPLITS,
    contents,
    find_splits,
    folders_named,
    visible,
)

# Names under which people keep the images and the label maps, in lower case.
IMAGES = ("images", "image", "imgs", "img", "photos", "jpegimages", "leftimg8bit", "input")
LABELS = (
    "labels",
    "label",
    "masks",
    "mask",
    "annotations",
    "annotation",
    "segmentationclass",
    "groundtruth",
    "ground_truth",
    "gt",
    "gtfine",
    "targets",
)
# What people append to an image's name to name its label map, the longest first.
MARKS = ("_labels", "_label", "_masks", "_mask", "-mask", "_seg", "_gt", "_L", "")
EVERY = 5  # one pair of so many becomes a validation pair


def proposal(root: Path) -> str:
    """Describes a folder without splits and what to give, or to do, instead."""
    found = f"{root} holds {contents(root)}; there is no folder train, val or test. "
    inside = [folder for folder in _folders(root) if _is_data_set(folder)]
    above = _above(root)
    if above:
        return f"{found}It is a part of a data set; give {above} instead"
    if inside:
        return f"{found}Give {' or '.join(map(str, inside[:3]))} instead"
    commands = _by_split(root) or _renamed(root) or _two_folders(root) or _pairs(root)
    if commands:
        lines = (f"cd {shlex.quote(str(root))}", *commands)
        return f"{found}These commands create them:" + "".join(f"\n      {line}" for line in lines)
    return (
        f"{found}Put images into train/images and val/images, and the label map NAME.png of each "
        "image NAME.jpg into train/labels and val/labels"
    )


def _folders(parent: Path) -> list[Path]:
    return [path for path in visible(parent) if path.is_dir()]


def _above(root: Path) -> Path | None:
    """The data set of which this is a split, or the images or labels of a split."""
    full = Path(os.path.abspath(root))  # links keep the names that the user gave
    parts = [part.lower() for part in full.parts]
    if parts[-1] in SPLITS and (_is_split(root) or len(find_splits(full.parent)) > 1):
        level = 1
    elif parts[-1] in ("images", "labels") and parts[-2] in SPLITS and _is_split(full.parent):
        level = 2
    else:
        return None
    short = len(root.parts) >= level and ".." not in root.parts
    return (root if short else full).parents[level - 1]


def _is_split(folder: Path) -> bool:
    return bool(folders_named(folder, "images") and folders_named(folder, "labels"))


def _is_data_set(folder: Path) -> bool:
    return any(_is_split(path) for split in SPLITS for path in folders_named(folder, split))


def _kind(parent: Path, names: Sequence[str]) -> Path | None:
    found = [path for path in _folders(parent) if path.name.lower() in names]
    return found[0] if len(found) == 1 else None


def _split_name(folder: Path) -> str | None:
    name = folder.name.lower()
    return name if name in SPLITS else SPLIT_SYNONYMS.get(name)


def _by_split(root: Path) -> list[str]:
    """Commands for images/SPLIT/* and labels/SPLIT/*."""
    images, labels = _kind(root, IMAGES), _kind(root, LABELS)
    if not images or not labels:
        return []
    commands = []
    for split in SPLITS:
        pair = [
            [folder for folder in _folders(part) if _split_name(folder) == split]
            for part in (images, labels)
        ]
        if all(len(same) == 1 for same in pair):
            commands.append(f"mkdir {split}")
            for (source,), name in zip(pair, ("images", "labels"), strict=True):
                commands.append(_move(source.relative_to(root).as_posix(), f"{split}/{name}"))
    return commands


def _renamed(root: Path) -> list[str]:
    """Commands for training/images, validation/masks and the like."""
    commands = []
    for folder in _folders(root):
        split = _split_name(folder)
        images, labels = _kind(folder, IMAGES), _kind(folder, LABELS)
        if split and images and labels:
            commands.append(_move(folder.name, split))
            for source, name in ((images, "images"), (labels, "labels")):
                if source.name.lower() != name:
                    commands.append(_move(f"{split}/{source.name}", f"{split}/{name}"))
    return commands


def _two_folders(root: Path) -> list[str]:
    """Commands for images/* and labels/* without splits."""
    images, labels = _kind(root, IMAGES), _kind(root, LABELS)
    files = _image_files(images) if images and labels else []
    if not files:
        return []
    return [
        "mkdir -p train val/images val/labels",
        _move(images.name, "train/images"),
        _move(labels.name, "train/labels"),
        _validation(_suffixes(files)),
    ]


def _pairs(root: Path) -> list[str]:
    """Commands for images and label maps side by side, such as a.jpg and a.png or a_mask.png."""
    files = _image_files(root)
    for mark in MARKS:
        labels = {
            path
            for path in files
            if path.suffix.lower() in (LABEL_SUFFIXES if mark else (".png",))
            and path.stem.endswith(mark)
        }
        images = [path for path in files if path not in labels]
        if labels and {path.stem for path in labels} <= {path.stem + mark for path in images}:
            break
    else:
        return []
    commands = ["mkdir -p train/images train/labels val/images val/labels"]
    for suffix in _suffixes(labels):
        target = f"${{f%{mark}{suffix}}}{suffix}"
        commands.append(f'for f in *{mark}{suffix}; do mv -- "$f" "train/labels/{target}"; done')
    commands += [f"mv -- *{suffix} train/images/" for suffix in _suffixes(images)]
    return [*commands, _validation(_suffixes(images))]


def _image_files(folder: Path) -> list[Path]:
    return [path for path in visible(folder) if path.suffix.lower() in IMAGE_SUFFIXES]


def _suffixes(paths: Iterable[Path]) -> list[str]:
    return sorted({path.suffix for path in paths})


def _move(source: str, target: str) -> str:
    return f"mv {shlex.quote(source)} {target}"


def _validation(suffixes: Sequence[str]) -> str:
    """The command that moves every fifth pair from train to val."""
    ending = suffixes[0] if len(suffixes) == 1 else ".*"
    return (
        f"i=0; for f in train/labels/*; do i=$((i+1)); [ $((i % {EVERY})) -eq 1 ] || continue; "
        f'n=$(basename "$f"); mv "$f" val/labels/; mv "train/images/${{n%.*}}"{ending} '
        "val/images/; done"
    )
