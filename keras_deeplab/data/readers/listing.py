"""Listing the files of a data set's own layout."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from keras_deeplab.data.faults import DatasetError, FileFault
from keras_deeplab.data.formats import IMAGE_SUFFIXES
from keras_deeplab.data.layout import contents


def check_entries(root: Path, layout: str, entries: Iterable[str]) -> None:
    """Raises a DatasetError that names every file or folder of a layout that is not there."""
    lost = [name for name in entries if not (root / name).exists()]
    if lost:
        text = f"{root} holds {contents(root)}"
        faults = [FileFault("missing folder", f"{name}; {text}", layout) for name in lost]
        raise DatasetError(str(root), faults)


def files_below(folder: Path, suffixes: Iterable[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Returns the files in all subfolders that end so, sorted, without hidden ones."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in suffixes
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def inner_folder(root: Path, names: Iterable[str], needed: str) -> Path:
    """Returns the folder that holds `needed`: the root, or one of these inside it."""
    folders = (root, *(root / name for name in names))
    return next((folder for folder in folders if (folder / needed).exists()), root)


def read_lines(path: Path) -> list[str]:
    """Returns the lines of a text file in UTF-8 that are not empty."""
    return [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]


def first_existing(stem: Path) -> Path | None:
    """Returns the image file of this path without its ending, or None."""
    suffixes = (*IMAGE_SUFFIXES, *map(str.upper, IMAGE_SUFFIXES))
    found = (stem.with_name(f"{stem.name}{suffix}") for suffix in suffixes)
    return next((path for path in found if path.exists()), None)
