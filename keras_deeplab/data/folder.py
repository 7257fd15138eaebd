"""Data sets in a folder with train, val and test, and opening a data set by its name."""

from __future__ import annotations

import atexit
import gc
import logging
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_deeplab import validation
from keras_deeplab.data.decoding import read_picture
from keras_deeplab.data.faults import DatasetError, FileFault
from keras_deeplab.data.label_codes import LabelCode, Settings, infer_values, read_settings
from keras_deeplab.data.label_maps import ColorCode, LabelFacts, label_facts, read_label
from keras_deeplab.data.layout import (
    SplitFiles,
    entries_named,
    find_splits,
    is_utf8,
    list_split,
    proposal,
    shown,
)
from keras_deeplab.data.orientation import turned
from keras_deeplab.data.shapes import Shapes
from keras_deeplab.data.source import DatasetInfo, Source, decoded

logger = logging.getLogger(__name__)


@atexit.register
def _release_iterators() -> None:
    """Releases the iterators that exist when a program ends.

    Their threads call Python to read files. Once the interpreter stops, such a call never returns,
    and the iterator would wait for it and keep the process alive.
    """
    for held in gc.get_objects():
        if issubclass(type(held), tf.data.Iterator):
            vars(held).clear()


def map_files(
    function: Callable[[Path], Any], paths: Iterable[Path], root: Path
) -> tuple[dict[Path, Any], list[FileFault]]:
    """Calls `function` on each path in a thread pool; returns results and faults."""

    def call(path: Path) -> Any:
        try:
            return function(path)
        except OSError as error:
            fault = FileFault("unreadable file", str(error))
        except FileFault as error:
            fault = error
        fault.found = f"{shown(root, path)}: {fault.found}"
        return fault

    paths = list(paths)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        found = dict(zip(paths, pool.map(call, paths), strict=True))
    faults = [fault for fault in found.values() if isinstance(fault, FileFault)]
    facts = {path: one for path, one in found.items() if not isinstance(one, FileFault)}
    return facts, faults


class Folder(Source):
    """A folder of images and label maps.

    The folder has subfolders `train`, `val` and `test` (at least one), each with `images` and
    `labels`, in upper or lower case; `images/NAME.jpg` belongs to `labels/NAME.png`. Hidden files,
    Thumbs.db and desktop.ini are skipped; files of other types are faults.

    Images are JPEG, PNG, BMP, WebP or TIFF files of at most 179 megapixels: grey images become RGB,
    alpha is dropped, and 16-bit samples keep their upper 8 bits. EXIF orientations are applied,
    unless only the stored size equals the label map's. Label maps are PNG, TIFF, BMP or .npy files
    with one channel of values up to 255, with a palette whose indices are the labels, or with the
    RGB colours in dataset.json.

    An optional `dataset.json` has the keys `"classes"` (names), `"colors"` (`[red, green, blue]`
    per class), `"ignore_colors"`, `"ignore_label"` (a mask value or a list, 255 by default) and
    `"values"` (the mask values of the classes in order). Without `"classes"`, `"colors"` and
    `"values"` the classes are inferred from the label maps: the values 0, 1, 2, ... without the
    ignored ones, or two classes for masks of exactly 0 and 255. If 255 may be a class, or other
    values occur, the error shows what to write.

    Args:
        root: The folder.

    Raises:
        DatasetError: If `root` is not a folder or has no split. On use, if dataset.json is
            malformed, the classes are unclear, or files are missing or damaged; `data.audit` lists
            all faults at once.

    Example:

    >>> source = data.Folder("photos")
    >>> print(data.audit(source))
    >>> train = data.training_dataset(source, crop_size=(256, 256))
    """

    def __init__(self, root: str | os.PathLike) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise self._error("missing folder", f"{self.root} is not a folder")
        if not is_utf8(str(self.root)):
            raise self._error("file name not UTF-8", str(self.root))
        if not self.splits:
            raise self._error("missing folder", proposal(self.root))
        self._files: dict[str, SplitFiles] = {}
        self._labels: dict[str, tuple[dict[Path, LabelFacts], list[FileFault]]] = {}

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have a folder, in the order train, val, test."""
        return find_splits(self.root)

    @property
    def info(self) -> DatasetInfo:
        """The classes, from dataset.json or inferred from all label maps."""
        return self._resolved[0]

    @cached_property
    def settings(self) -> Settings:
        """The contents of dataset.json."""
        found = entries_named(self.root, "dataset.json")
        try:
            if len(found) > 1:
                names = " and ".join(path.name for path in found)
                raise ValueError(f"{names} differ only in case")
            return read_settings(found[0]) if found else Settings()
        except ValueError as error:
            raise self._error("bad dataset.json", f"dataset.json: {error}") from error

    @cached_property
    def _colors(self) -> ColorCode | None:
        try:
            return self.settings.color_code
        except DatasetError:
            return None  # `resolve` raises it

    def files(self, split: str) -> SplitFiles:
        """Returns the files of a split, and the faults of their names."""
        self.check_split(split)
        if split not in self._files:
            self._files[split] = list_split(self.root, split)
        return self._files[split]

    def labels(self, split: str) -> tuple[dict[Path, LabelFacts], list[FileFault]]:
        """Returns the facts of all label maps of a split, read once, and the faults of others."""
        if split not in self._labels:
            facts = partial(label_facts, colors=self._colors)
            paths = self.files(split).labels.values()
            self._labels[split] = map_files(facts, paths, self.root)
        return self._labels[split]

    def pairs(self, split: str) -> list[tuple[str, Path, Path]]:
        """Returns `(name, image file, label file)`, sorted by name; raises if one is missing."""
        files = self.files(split)
        if files.faults:
            raise DatasetError(str(self.root), files.faults)
        return files.pairs()

    def names(self, split: str) -> list[str]:
        """Returns the file names without their endings, sorted."""
        return [name for name, _, _ in self.pairs(split)]

    def dataset(self, split: str, numbers: tf.data.Dataset | None = None) -> tf.data.Dataset:
        """Returns the decoded pairs of a split (see `data.Source.dataset`)."""
        pairs = self.pairs(split)
        code, colors = self._resolved[1], self._colors

        def read(number: int) -> tuple[np.ndarray, np.ndarray]:
            _, image, path = pairs[number]
            try:
                label = _labels_of(path, code, colors)
                path = image
                picture = read_picture(path)
                return turned(picture.pixels, picture.facts.orientation_for(label.shape)), label
            except (FileFault, OSError) as error:
                raise ValueError(f"{path}: {error}") from error

        return decoded(read, len(pairs), numbers)

    def resolve(self) -> tuple[DatasetInfo, LabelCode, list[str]]:
        """Returns classes, label code and warnings, from the label maps that can be read."""
        settings = self.settings
        if settings.values:
            return settings.info(), settings.code, []
        facts = [facts for split in self.splits for facts in self.labels(split)[0].values()]
        if not facts:
            raise self._error("classes unclear", "there is no readable label map and no list")
        palette = next((one.palette for one in facts if one.palette), ())
        try:
            values, notes = infer_values([one.counts for one in facts], settings.ignore_label)
        except ValueError as error:
            raise self._error("classes unclear", str(error)) from error
        settings = replace(settings, values=values)
        if values != tuple(range(len(values))):
            labels = f"labels 0 to {len(values) - 1} are the mask values {settings.code}"
            notes.append(f"dataset.json lists no classes; {labels}")
        return settings.info(palette), settings.code, notes

    @cached_property
    def _resolved(self) -> tuple[DatasetInfo, LabelCode]:
        info, code, notes = self.resolve()
        if not self.settings.values:
            faults = [fault for split in self.splits for fault in self.labels(split)[1]]
            if faults:
                raise DatasetError(str(self.root), faults)
        for note in notes:
            logger.warning("%s: %s", self.root, note)
        return info, code

    def _error(self, kind: str, found: str) -> DatasetError:
        return DatasetError(str(self.root), [FileFault(kind, found)])


def open_source(name: str | os.PathLike) -> Source:
    """Opens a data set by name or by its folder.

    Args:
        name: `"shapes"` for the embedded data set, or the path of a folder as in `data.Folder`.

    Raises:
        ValueError: If it is neither.
        DatasetError: If the folder has no split.

    Example:

    >>> keras_deeplab.data.open_source("shapes").info.num_classes
    6
    """
    if str(name) == "shapes":
        return Shapes()
    if not Path(name).is_dir():
        rule = "'shapes' or an existing folder root/{train,val}/{images,labels}"
        raise validation.error("name", rule, str(name))
    return Folder(name)


def _labels_of(path: Path, code: LabelCode, colors: ColorCode | None) -> np.ndarray:
    values, _ = read_label(path, colors)
    if not code.known[values].all():
        wrong = np.unique(values[~code.known[values]])
        raise FileFault("label value out of range", str(wrong.tolist()), str(code))
    return code.table[values]
