"""Suggestions for a folder without splits: the folder to use instead, or what to move."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from keras_deeplab.data.files import (
    SPLIT_SYNONYMS,
    SPLITS,
    contents,
    find_splits,
    folders_named,
    visible,
)
from keras_deeplab.data.formats import IMAGE_SUFFIXES, LABEL_SUFFIXES

# Common names of the folders of images and label maps, in lower case.
IMAGES = ("images", "image", "imgs", "img", "photos", "jpegimages", "leftimg8bit", "input")
LABELS = (
    *("labels", "label", "masks", "mask", "annotations", "annotation", "segmentationclass"),
    *("groundtruth", "ground_truth", "gt", "gtfine", "targets"),
)
# Common suffixes of label maps, after the image's name.
MARKS = ("_labels", "_label", "_masks", "_mask", "-mask", "_seg", "_gt", "_L", "")
SPLIT_UP = "Then move about a fifth of the pairs to val/images and val/labels"


def proposal(root: Path) -> str:
    """Describes a folder without splits and suggests a fix."""
    found = f"{root} holds {contents(root)}; there is no folder train, val or test. "
    inside = [folder for folder in _folders(root) if _is_data_set(folder)]
    above = _above(root)
    if above:
        return f"{found}It is a part of a data set; give {above} instead"
    if inside:
        return f"{found}Give {' or '.join(map(str, inside[:3]))} instead"
    moves = list(_moves(root)) or list(_moves_of_pairs(root))
    if moves:
        lines = "".join(f"\n      {source} to {target}" for source, target in moves)
        rest = "" if any("val/" in target for _, target in moves) else f"\n      {SPLIT_UP}"
        return f"{found}In this folder, move{lines}{rest}"
    return (
        f"{found}Put images into train/images and val/images, and the label map NAME.png of each "
        "image NAME.jpg into train/labels and val/labels"
    )


def _folders(parent: Path | None) -> list[Path]:
    return [path for path in visible(parent) if path.is_dir()] if parent else []


def _above(root: Path) -> Path | None:
    """The data set that contains this split, or these images or labels of a split."""
    full = Path(os.path.abspath(root))  # not resolved, so that links keep their names
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


def _kind(parent: Path | None, names: Sequence[str]) -> Path | None:
    found = [path for path in _folders(parent) if path.name.lower() in names]
    return found[0] if len(found) == 1 else None


def _split_name(folder: Path) -> str | None:
    name = folder.name.lower()
    return name if name in SPLITS else SPLIT_SYNONYMS.get(name)


def _moves(root: Path) -> Iterator[tuple[str, str]]:
    """What to move where, for images/SPLIT, SPLIT/img and images/* with their label maps."""
    images, labels = _kind(root, IMAGES), _kind(root, LABELS)
    whole = {_split_name(folder): folder for folder in _folders(root)}
    for split in SPLITS:
        places = (
            *(_of_split(part, split) for part in (images, labels)),
            *(_kind(whole.get(split), names) for names in (IMAGES, LABELS)),
        )
        for pair in (places[:2], places[2:]):
            if all(pair):
                yield pair[0].relative_to(root).as_posix(), f"{split}/images"
                yield pair[1].relative_to(root).as_posix(), f"{split}/labels"
    if images and labels and any(path.suffix.lower() in IMAGE_SUFFIXES for path in visible(images)):
        yield images.name, "train/images"
        yield labels.name, "train/labels"


def _of_split(parent: Path | None, split: str) -> Path | None:
    found = [folder for folder in _folders(parent) if _split_name(folder) == split]
    return found[0] if len(found) == 1 else None


def _moves_of_pairs(root: Path) -> Iterator[tuple[str, str]]:
    """The same for images and label maps in one folder, such as a.jpg and a.png or a_mask.png."""
    files = [path for path in visible(root) if path.suffix.lower() in IMAGE_SUFFIXES]
    for mark in MARKS:
        labels = {
            path
            for path in files
            if path.suffix.lower() in (LABEL_SUFFIXES if mark else (".png",))
            and path.stem.endswith(mark)
        }
        images = {path.stem for path in files if path not in labels}
        if labels and {path.stem for path in labels} <= {name + mark for name in images}:
            first = min(labels)
            name = first.name.removesuffix(mark + first.suffix) + first.suffix
            yield "the images", "train/images"
            yield f"their label maps, such as {first.name},", f"train/labels/{name}"
            return
