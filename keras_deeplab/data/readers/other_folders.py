"""Folders in other layouts than train/images and train/labels, and lists of files."""

from __future__ import annotations

import csv
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

from keras_deeplab.data.faults import DatasetError, FileFault
from keras_deeplab.data.folder import Folder
from keras_deeplab.data.formats import IMAGE_SUFFIXES, PIXEL_SUFFIXES, UNSUPPORTED_SUFFIXES
from keras_deeplab.data.layout import (
    IMAGE_FOLDERS,
    LABEL_FOLDERS,
    LISTED_LABELS,
    VOC_LISTS,
    SplitFiles,
    is_devkit,
    shown,
    split_named,
    visible,
)
from keras_deeplab.data.paths import RemotePath, data_path, is_remote, normal
from keras_deeplab.data.readers.listing import files_below, read_lines
from keras_deeplab.data.readers.splitting import by_folders, folder_split, grouped
from keras_deeplab.files import relative_path
from keras_deeplab.names import first_few

# At the end of a label map's name, before `.png`.
ENDINGS = ("_mask", "_masks", "_label", "_labels", "_gt", "_seg", "_segmentation", "_annotation")
MORE_ENDINGS = (*ENDINGS, "_l")  # in a folder of label maps


class OtherFolder(Folder):
    """A folder of images and label maps in another layout, with or without splits.

    - `images` and `masks` (or `labels`, `annotations`, `gt`, ... in any case), with the same
      folders in both: `images/a/1.jpg` belongs to `masks/a/1.png` or `masks/a/1_mask.png`. Folders
      of splits, as in `img_dir/train` and `ann_dir/train`, are used.
    - the same for each split: `train` and `trainannot`, `train` and `train_labels`, `train_images`
      and `train_masks`, `images_train` and `masks_train`.
    - or one folder, with folders in it, where `1_mask.png`, `1_label.png` or `1_gt.png` is beside
      `1.jpg`.

    `ImageSets/Segmentation/train.txt`, `val.txt` and `test.txt` list the images of the splits, as
    in PASCAL VOC. Without splits a fifth of the images validates; splits.json keeps the choice and
    may be changed. Beside folders of splits others are an error, unless a splits.json divides their
    images. All else is as in `data.Folder`.
    """

    @staticmethod
    def fits(root: Path) -> bool:
        """Whether a folder has this layout."""
        return bool(_folder_pairs(root)) or any(_beside(root))

    @cached_property
    def _all(self) -> SplitFiles:
        """The files of all splits."""
        files, pairs = SplitFiles(), _folder_pairs(self.root)
        for part, images, labels in pairs:
            for path in files_below(images, PIXEL_SUFFIXES):
                _enter(files, files.images, path, images, part)
            for path in files_below(labels, LISTED_LABELS):
                _enter(files, files.labels, path, labels, part, MORE_ENDINGS)
            for folder in (images, labels):
                unread = files_below(folder, UNSUPPORTED_SUFFIXES)
                texts = [shown(self.root, path) for path in unread]
                files.faults += [FileFault("unsupported file", text) for text in texts]
        used = {folder for _, *both in pairs for folder in both}
        if pairs and pairs[0][0] and (lost := _roles(self.root) - used):
            text = f"{first_few(sorted(path.name for path in lost))}: folders without a partner"
            files.warnings.append(f"{text} are left out")
        if not pairs:
            images, labels = _beside(self.root)
            for path in images:
                _enter(files, files.images, path, self.root)
            for path in labels:
                _enter(files, files.labels, path, self.root, "", ENDINGS)
        if self._listed:
            files.leave_out(files.images.keys() - self._listed, VOC_LISTS)
            files.images = {name: at for name, at in files.images.items() if name in self._listed}
            files.labels = {name: at for name, at in files.labels.items() if name in self._listed}
            lost = sorted(self._listed.keys() - files.images.keys() - files.labels.keys())
            texts = [f"{name}, which a list in {VOC_LISTS} has, is not there" for name in lost]
            files.faults += [FileFault("bad list", text) for text in texts]
        return files

    @cached_property
    def _listed(self) -> dict[str, str | None]:
        """The split of each image in lists like those of PASCAL VOC; None if no split lists it."""
        split_of: dict[str, str | None] = {}
        folder = self.root / VOC_LISTS
        lists = (
            [path for path in visible(folder) if path.suffix == ".txt"] if folder.is_dir() else []
        )
        for path in sorted(lists, key=lambda path: split_named(path.stem) is None):
            split = split_named(path.stem)
            for line in read_lines(path):
                name = line.strip('"') if line.startswith('"') else line.split()[0]
                name = unicodedata.normalize("NFC", name)
                if name.lower().endswith(PIXEL_SUFFIXES):
                    name = name.rpartition(".")[0]
                if split_of.setdefault(name, split) != split and split:
                    text = f"{VOC_LISTS}: {name} is listed in {split_of[name]} and {split}"
                    raise self._error("bad list", text, "each image in one list")
        return split_of

    @cached_property
    def _splits(self) -> dict[str, list[str]]:
        if self._listed:
            return grouped(self._listed, self.root)
        images, labels = self._all.images.keys(), self._all.labels.keys()
        names = images & labels
        if any(map(folder_split, names)):  # then faults are those of their folder's split
            names |= set(filter(folder_split, images ^ labels))
        return by_folders(names, self.root)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits of the folders, or of splits.json."""
        return tuple(self._splits)

    def list_files(self, split: str) -> SplitFiles:
        """Lists the files of a split by their paths without endings."""
        images, labels = self._all.images, self._all.labels
        files, names = SplitFiles(), set(self._splits[split])
        if split == self.splits[0]:  # reports also what is in no split
            files.faults += self._all.faults
            files.warnings += self._all.warnings
            names |= (images.keys() ^ labels.keys()).difference(*self._splits.values())
        files.images = {name: images[name] for name in names & images.keys()}
        files.labels = {name: labels[name] for name in names & labels.keys()}
        return files.check(self.root, split)

    def check_layout(self) -> list[FileFault]:
        """Finds no faults: any folder may be in it."""
        return []


class ListedFiles(OtherFolder):
    """Pairs of a CSV or text file: image, label map and optionally the split in each row.

    Paths are relative to the file's folder, where a dataset.json may be; a first row of titles is
    skipped. A CSV file may have semicolons, as spreadsheets of some languages write them. A text
    file has tabs in place of commas, or spaces where a line has no tab. Of rows without a split a
    fifth of the images validates, which NAME.splits.json keeps.

    Args:
        path: The file, which ends in .csv or .txt.

    Raises:
        DatasetError: If rows are malformed or files are missing; the message names all of them.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = data_path(path)
        self._split_of: dict[str, str] = {}
        super().__init__(self.path.parent)

    @cached_property
    def _all(self) -> SplitFiles:
        files, self._split_of = SplitFiles(), {}
        for number, row in _rows(self.path):
            if not 2 <= len(row) <= 3:
                files.faults.append(self._fault(number, f"{len(row)} cells: {', '.join(row)}"))
                continue
            image, label = (self._path(cell) for cell in row[:2])
            lost = [cell for cell in row[:2] if not self._path(cell).is_file()]
            if lost and number == 1 and not any(Path(cell).suffix for cell in row[:2]):
                continue  # titles
            name = os.fspath(image.with_suffix(""))
            if is_remote(name) == is_remote(self.root):
                name = Path(relative_path(name, self.root)).as_posix()
            split = split_named(row[2]) if any(row[2:]) else ""
            if lost:
                files.faults.append(self._fault(number, f"missing {', '.join(lost)}"))
            elif split is None:
                files.faults.append(self._fault(number, f"the split {row[2]!r}"))
            elif name in files.images:
                files.faults.append(self._fault(number, f"{row[0]} for the second time"))
            else:
                files.images[name], files.labels[name] = image, label
                self._split_of[name] = split
        return files

    @cached_property
    def _splits(self) -> dict[str, list[str]]:
        # Without a valid row there is nothing to divide, and the faults of all are reported.
        if not self._all.images:
            return {"train": []}
        return grouped(self._split_of, self.root, f"{self.path.stem}.splits.json")

    def _path(self, cell: str) -> Path | RemotePath:
        if is_remote(cell):
            return data_path(cell)
        return data_path(normal(self.root / cell.replace("\\", "/")))

    def _fault(self, number: int, text: str) -> FileFault:
        return FileFault("bad list", f"{self.path.name}, row {number}: {text}")


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of a list that are not empty, with their numbers from 1."""
    is_csv = path.suffix.lower() == ".csv"
    try:
        lines = path.read_text("utf-8-sig").splitlines()
        separator = ";" if lines and ";" in lines[0] and "," not in lines[0] else ","
        rows = csv.reader(lines, delimiter=separator) if is_csv else map(_cells, lines)
        rows = [[cell.strip() for cell in row] for row in rows]
    except (UnicodeDecodeError, csv.Error) as error:  # such as a quote that is not closed
        kind = "a CSV list" if isinstance(error, csv.Error) else "text in UTF-8"
        fault = FileFault("bad list", f"{path.name} is not {kind}: {error}")
        raise DatasetError(str(path), [fault]) from error
    return ((number, row) for number, row in enumerate(rows, 1) if any(row))


def _cells(line: str) -> list[str]:
    return re.split(r"\t+" if "\t" in line.strip() else r"\s+", line.strip())


def _folder_pairs(root: Path) -> list[tuple[str, Path, Path]]:
    """The folders of images and of label maps, and what the names of both have in common."""
    images, labels = defaultdict(list), defaultdict(list)
    for path in (path for path in visible(root) if path.is_dir()):
        name = path.name.lower()
        if (part := _without(LABEL_FOLDERS, name)) is not None:
            endings = {file.suffix.lower() for file in visible(path)}
            if not endings or not endings <= {".json", ".xml", ".txt"}:
                labels[part].append(path)
        else:
            part = _without(IMAGE_FOLDERS, name)
            images[name if part is None else part].append(path)
    if not labels[""] and not is_devkit(root):
        labels[""] = images["segmentationclass"]
    pairs = [
        (part, images[part][0], labels[part][0])
        for part in images.keys() & labels
        if len(images[part]) == len(labels[part]) == 1
    ]
    return [pair for pair in pairs if not pair[0]] or sorted(pairs)


def _roles(root: Path) -> set[Path]:
    """The folders that are named like a split, or as images or label maps."""
    folders = {path: path.name.lower() for path in visible(root) if path.is_dir()}
    words = (*IMAGE_FOLDERS, *LABEL_FOLDERS)
    return {
        path
        for path, name in folders.items()
        if split_named(name) or _without(words, name) is not None
    }


def _without(words: Iterable[str], name: str) -> str | None:
    """A name without one of the words at an end of it; None if it has none there."""
    word = "|".join(sorted(words, key=len, reverse=True))  # "img_dir" before "img"
    found = re.fullmatch(rf"({word})([_-](.+))?|(.+?)([_-]({word})|annot)", name)
    return (found[3] or found[4] or "") if found else None


def _beside(root: Path) -> tuple[list[Path], list[Path]]:
    """Images and label maps of one folder, where label maps have their own ending."""
    parts = [], []
    for path in files_below(root, IMAGE_SUFFIXES):
        parts[path.stem.lower().endswith(ENDINGS)].append(path)
    return parts if parts[1] else ([], [])


def _enter(
    files: SplitFiles,
    found: dict[str, Path],
    path: Path,
    folder: Path,
    part: str = "",
    endings: tuple[str, ...] = (),
) -> None:
    """Enters a file by its path below a folder, without one of the endings of a label map."""
    name = path.relative_to(folder).with_suffix("").as_posix()
    name = unicodedata.normalize("NFC", f"{part}/{name}" if part else name)
    ending = next((one for one in endings if name.lower().endswith(one)), "")
    if name not in files.images:
        name = name[: len(name) - len(ending)]
    if name in found:
        both = f"{shown(folder, found[name])}, {shown(folder, path)}"
        files.faults.append(FileFault("duplicate name", both))
    found.setdefault(name, path)
