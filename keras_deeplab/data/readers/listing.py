"""Listing the files of a data set's own layout."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from keras_deeplab.data.faults import DatasetError, FileFault
from keras_deeplab.data.formats import IMAGE_SUFFIXES
from keras_deeplab.data.layout import by_parts, contents, shown
from keras_deeplab.data.paths import RemotePath

# Of files in lists; other dots are part of a name.
ENDINGS = (*IMAGE_SUFFIXES, ".mat")

# Of a linked folder: through links to folders with links their number would double with each.
MAX_PLACES = 1000


def check_entries(root: Path, layout: str, entries: Iterable[str]) -> None:
    """Raises a DatasetError that names every file or folder of a layout that is not there."""
    lost = [name for name in entries if not (root / name).exists()]
    if lost:
        text = f"{root} holds {contents(root)}"
        faults = [FileFault("missing folder", f"{name}; {text}", layout) for name in lost]
        raise DatasetError(str(root), faults)


def files_below(folder: Path, suffixes: Iterable[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Returns the files in all subfolders, also linked ones, that end so; sorted, none hidden."""
    paths = folder.all_files() if isinstance(folder, RemotePath) else _walk(folder)
    above = len(folder.parts)
    found = (
        path
        for path in paths
        if path.suffix.lower() in suffixes
        and not any(part.startswith(".") for part in path.parts[above:])
    )
    return sorted(found, key=by_parts)


def _walk(folder: Path) -> Iterator[Path]:
    """Yields all files below a folder; a linked folder may be in it under several names."""
    places: Counter[Path] = Counter()
    for name, folders, files in os.walk(folder, followlinks=True):
        at = Path(name)
        linked = {one: (at / one).resolve() for one in folders if (at / one).is_symlink()}
        if linked:  # not to a folder around them
            around = {*(path.resolve() for path in (at, *at.parents)), *at.resolve().parents}
            folders[:] = [one for one in folders if linked.get(one) not in around]
        for one in linked.keys() & folders:
            places[linked[one]] += 1
            if places[linked[one]] > MAX_PLACES:
                fault = FileFault("folder in many places", shown(folder, at / one))
                raise DatasetError(str(folder), [fault])
        yield from (at / one for one in files)


def inner_folder(root: Path, names: Iterable[str], needed: str) -> Path:
    """Returns the folder that holds `needed`: the root, or one of these inside it."""
    folders = (root, *(root / name for name in names))
    return next((folder for folder in folders if (folder / needed).exists()), root)


def read_lines(path: Path) -> list[str]:
    """Returns the lines of a text file in UTF-8 that are not empty."""
    return [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]


def read_names(path: Path) -> list[str]:
    """Returns the name of each line: X, or /JPEGImages/X.jpg with other files after it."""
    files = (Path(line.split()[0]) for line in read_lines(path))
    return [file.stem if file.suffix.lower() in ENDINGS else file.name for file in files]


def existing(stem: Path) -> list[Path]:
    """Returns the image files of this path without its ending."""
    suffixes = (*IMAGE_SUFFIXES, *map(str.upper, IMAGE_SUFFIXES))
    found = (stem.with_name(f"{stem.name}{suffix}") for suffix in suffixes)
    return [path for path in found if path.exists()]
