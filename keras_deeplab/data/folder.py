"""Data sets in a folder with train, val and test."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from keras_deeplab.data.bands import Bands
from keras_deeplab.data.class_lists import read_class_list
from keras_deeplab.data.faults import DatasetError, FileFault
from keras_deeplab.data.file_source import FileSource
from keras_deeplab.data.label_codes import (
    LabelCode,
    Settings,
    infer_values,
    read_settings,
    settings_of,
)
from keras_deeplab.data.label_maps import Color, ColorCode, LabelFacts, read_label
from keras_deeplab.data.layout import (
    SplitFiles,
    check_root,
    entries_named,
    find_splits,
    list_split,
    proposal,
)
from keras_deeplab.data.source import MAX_CLASSES, DatasetInfo

logger = logging.getLogger(__name__)


class Folder(FileSource):
    """A folder of images and label maps.

    The folder has subfolders `train`, `val` and `test` (at least one), each with `images` and
    `labels`, in upper or lower case; `images/NAME.jpg` belongs to `labels/NAME.png`. Hidden files,
    Thumbs.db and desktop.ini are skipped; files of other types are faults.

    Images are JPEG, PNG, BMP, WebP or TIFF files of at most 179 megapixels: grey images become RGB,
    alpha is dropped, and 16-bit samples keep their upper 8 bits. EXIF orientations are applied,
    unless only the stored size equals the label map's. Label maps are PNG, TIFF, BMP or .npy files
    with one channel of values up to 255, with a palette whose indices are the labels, or with the
    RGB colours in dataset.json, stored as such or as a palette of them.

    With `"channels"` in dataset.json images have another number of channels, and with `"range"`
    the sample values [low, high] become 0 and 255: TIFF and PNG files (with the extra `large`), and
    .npy arrays of `(height, width, channels)`.

    An optional `dataset.json` has the keys `"classes"` (names), `"colors"` (`[red, green, blue]`
    per class), `"ignore_colors"`, `"ignore_label"` (a mask value or a list, 255 by default) and
    `"values"` (the mask values of the classes in order). Without `"classes"`, `"colors"` and
    `"values"` the classes are inferred from the label maps: the values 0, 1, 2, ... without the
    ignored ones, or two classes for masks of exactly 0 and 255. If 255 may be a class, or other
    values occur, the error shows what to write. Without the file, classes listed by CVAT
    (`labelmap.txt`), Roboflow (`_classes.csv`) or labelme2voc (`class_names.txt`) are used.

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
        super().__init__(root)
        if not self.splits:
            raise self._error("missing folder", proposal(self.root))

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
        """The contents of dataset.json, or else the classes that an annotation tool lists."""
        found = entries_named(self.root, "dataset.json")
        try:
            if len(found) > 1:
                names = " and ".join(path.name for path in found)
                raise ValueError(f"{names} differ only in case")
            if found:
                return read_settings(found[0])
        except ValueError as error:
            raise self._error("bad dataset.json", f"dataset.json: {error}") from error
        try:
            return settings_of(read_class_list(self.root))
        except ValueError as error:
            raise self._error("bad class list", str(error)) from error

    @property
    def _valid_settings(self) -> Settings:
        try:
            return self.settings
        except DatasetError:  # which `resolve` raises
            return Settings()

    @cached_property
    def _colors(self) -> ColorCode | None:
        return self._valid_settings.color_code

    @property
    def bands(self) -> Bands:
        """How image files are read, by dataset.json."""
        return self._valid_settings.bands

    @property
    def listed_colors(self) -> frozenset[Color]:
        """The colours that RGB label maps may have."""
        settings = self._valid_settings
        return frozenset(settings.colors + settings.ignore_colors)

    def list_files(self, split: str) -> SplitFiles:
        """Lists the files of a split, by their names without their endings."""
        return list_split(self.root, split)

    def check_layout(self) -> list[FileFault]:
        """Returns the faults of folders that look like splits of other names."""
        return check_root(self.root)

    def check_split(self, split: str) -> None:
        """Raises an error that names folders like `training`, where the split is missing."""
        try:
            super().check_split(split)
        except ValueError:
            if faults := self.check_layout():
                raise DatasetError(str(self.root), faults) from None
            raise

    @property
    def code(self) -> LabelCode:
        """The meaning of the values in the label maps."""
        return self._resolved[1]

    def label_facts(self, name: str, path: Path) -> LabelFacts:
        """Counts the values of a label map, and returns its palette."""
        del name
        values, palette = read_label(path, self._colors)
        return LabelFacts(values.shape, np.bincount(values.reshape(-1), minlength=256), palette)

    def resolve(self) -> tuple[DatasetInfo, LabelCode, list[str]]:
        """Returns classes, label code and warnings, from the label maps that can be read."""
        settings = self.settings
        grey = tuple(color[0] for color in settings.colors if len({*color}) == 1)
        may_be_grey = len(grey) > 1 and settings.values == tuple(range(len(grey)))
        if settings.values and not may_be_grey:
            return settings.info(), settings.code, []
        facts = [facts for split in self.splits for facts in self.labels(split)[0].values()]
        if may_be_grey:
            found = set(np.flatnonzero(sum(one.counts for one in facts)).tolist())
            if found <= {*grey} and not found <= {*settings.values}:  # grey maps of these colours
                settings = replace(settings, values=grey)
            return settings.info(), settings.code, []
        if not facts:
            faults = [fault for split in self.splits for fault in self.labels(split)[1]]
            raise self._error("classes unclear", _advice(faults))
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
        if not self.settings.values:
            faults = [fault for split in self.splits for fault in self.labels(split)[1]]
            if faults:
                raise DatasetError(str(self.root), faults)
        info, code, notes = self.resolve()
        for note in notes:
            logger.warning("%s: %s", self.root, note)
        return info, code


def _advice(faults: Sequence[FileFault]) -> str:
    """What to write into dataset.json where no label map can be read."""
    in_files = [fault.colors for fault in faults if fault.kind == "label map not one-channel"]
    colors = sorted({tuple(color) for listed in in_files for color in listed})
    # None are listed of smooth edges, whose colours are not those of classes.
    if not all(in_files) or not 1 < len(colors) <= MAX_CLASSES:
        return "there is no readable label map and no list of classes"
    listed = {"colors": colors}
    return (
        f"the RGB label maps hold {len(colors)} colours; write into dataset.json "
        f'{json.dumps(listed)}, and names for them as "classes", with colours that are not a class '
        'in "ignore_colors" instead'
    )
