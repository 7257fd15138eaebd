"""The base class of data sets whose images and label maps are files."""

from __future__ import annotations

import abc
import atexit
import gc
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_deeplab.data.bands import Bands
from keras_deeplab.data.faults import DatasetError, FileFault
from keras_deeplab.data.label_codes import LabelCode
from keras_deeplab.data.label_maps import ColorCode, LabelFacts, read_label
from keras_deeplab.data.layout import SplitFiles, folder_of, is_utf8, shown
from keras_deeplab.data.orientation import turned
from keras_deeplab.data.paths import data_path
from keras_deeplab.data.source import Source, decoded
from keras_deeplab.files import digest


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
    function: Callable[[str, Path], Any], files: Mapping[str, Path], root: Path
) -> tuple[dict[str, Any], list[FileFault]]:
    """Calls `function` on each name and path in a thread pool; returns results and faults.

    Both are in the order of the names, so that an audit reports the same files each time.
    """
    files = dict(sorted(files.items()))

    def call(name: str, path: Path) -> Any:
        try:
            return function(name, path)
        except OSError as error:
            fault = FileFault("unreadable file", str(error))
        except FileFault as error:
            fault = error
        fault.found = f"{shown(root, path)}: {fault.found}"
        return fault

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        found = dict(zip(files, pool.map(call, files, files.values()), strict=True))
    faults = [fault for fault in found.values() if isinstance(fault, FileFault)]
    facts = {name: one for name, one in found.items() if not isinstance(one, FileFault)}
    return facts, faults


class FileSource(Source):
    """Images and label maps in files below a root.

    A subclass has `splits` and `info` and lists the files of a split. Where the values of label
    maps are not the labels, it has their `code`; where a label map is not an image file, it reads
    it.

    Args:
        root: The folder.

    Raises:
        DatasetError: If `root` is not a folder.
    """

    _colors: ColorCode | None = None  # of RGB label maps

    def __init__(self, root: str | os.PathLike) -> None:
        self.root = data_path(root)
        if not self.root.is_dir():
            around = f"; give {folder_of(self.root)}" if self.root.is_file() else ""
            text = f"{self.root} is not a folder{around}"
            raise self._error("missing folder", text, "a folder")
        if not is_utf8(str(self.root)):
            raise self._error("file name not UTF-8", str(self.root))
        self._files: dict[str, SplitFiles] = {}
        self._labels: dict[str, tuple[dict[str, LabelFacts], list[FileFault]]] = {}

    @abc.abstractmethod
    def list_files(self, split: str) -> SplitFiles:
        """Lists the files of a split by the names of its images, and the faults of the listing."""

    @property
    def bands(self) -> Bands:
        """How image files are read."""
        return Bands(self.info.channels, self.info.value_range)

    def read_values(self, name: str, path: Path) -> np.ndarray:
        """Returns the values of an image's label map, uint8 `(height, width)`.

        Args:
            name: The image's name.
            path: The file that `list_files` gave for its label map.
        """
        del name
        return read_label(path, self._colors)[0]

    @cached_property
    def code(self) -> LabelCode:
        """The meaning of the values: by default the labels themselves, with 255 ignored."""
        return LabelCode(tuple(range(self.info.num_classes)))

    def label_facts(self, name: str, path: Path) -> LabelFacts:
        """Decodes a whole label map and returns its facts, or raises a FileFault."""
        values = self._checked_values(name, path)
        return LabelFacts(values.shape, np.bincount(values.reshape(-1), minlength=256))

    def read_label(self, name: str, path: Path) -> np.ndarray:
        """Returns the labels of an image, uint8 `(height, width)`, or raises a FileFault."""
        return self.code.labels(self._checked_values(name, path))

    def _checked_values(self, name: str, path: Path) -> np.ndarray:
        values = self.read_values(name, path)
        if values.dtype != np.uint8:  # whose bytes would be taken for the values
            rule = f"`{type(self).__name__}.read_values` must return uint8"
            raise ValueError(f"{rule}. Received: {values.dtype}")
        return values

    def files(self, split: str) -> SplitFiles:
        """Returns the files of a split, and the faults of their names."""
        self.check_split(split)
        if split not in self._files:
            self._files[split] = self.list_files(split)
        return self._files[split]

    def labels(self, split: str) -> tuple[dict[str, LabelFacts], list[FileFault]]:
        """Returns the facts of all label maps of a split, read once, and the faults of others."""
        if split not in self._labels:
            self._labels[split] = map_files(self.label_facts, self.files(split).labels, self.root)
        return self._labels[split]

    def label_sizes(self, split: str) -> list[tuple[int, int]]:
        """Returns the `(height, width)` of the label maps, which an audit has read already."""
        facts, faults = self.labels(split)
        if faults:
            self.forget()
            raise DatasetError(str(self.root), faults)
        return [facts[name].size for name in self.names(split)]

    def forget(self) -> None:
        """Forgets what was read of the files, which may change after an error."""
        self._files.clear()
        self._labels.clear()
        for name in list(vars(self)):
            if isinstance(getattr(type(self), name, None), cached_property):
                delattr(self, name)

    def pairs(self, split: str) -> list[tuple[str, Path, Path]]:
        """Returns `(name, image file, label file)`, sorted by name; raises if one is missing."""
        files = self.files(split)
        if files.faults:
            self.forget()
            raise DatasetError(str(self.root), files.faults)
        return files.pairs()

    def names(self, split: str) -> list[str]:
        """Returns the names of a split's images, sorted."""
        return [name for name, _, _ in self.pairs(split)]

    def dataset(self, split: str, numbers: tf.data.Dataset | None = None) -> tf.data.Dataset:
        """Returns the decoded pairs of a split (see `data.Source.dataset`)."""
        pairs = self.pairs(split)
        _, bands = self.code, self.bands  # once, not in the threads that read

        def read(number: int) -> tuple[np.ndarray, np.ndarray]:
            name, image, path = pairs[number]
            try:
                label = self.read_label(name, path)
                path = image
                picture = bands.read(path)
                return turned(picture.pixels, picture.facts.orientation_for(label.shape)), label
            except (FileFault, OSError) as error:
                raise ValueError(f"{path}: {error}") from error

        return decoded(read, len(pairs), numbers, bands.channels)

    def encoded_images(self, split: str) -> Callable[[int], bytes]:
        """Returns a function that reads the image file at a position."""
        pairs = self.pairs(split)
        return lambda number: pairs[number][1].read_bytes()

    def fingerprint(self) -> str:
        """Identifies also the mask values of the classes."""
        return digest([super().fingerprint(), str(self.code)])

    def _error(self, kind: str, found: str, expected: str = "") -> DatasetError:
        return DatasetError(str(self.root), [FileFault(kind, found, expected)])
