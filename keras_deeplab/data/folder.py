"""Data sets in a folder with train, val and test."""

from __future__ import annotations

import atexit
import gc
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_deeplab.data.decoding import FEW_BITS, ImageFacts, named, read_picture, stored_size
from keras_deeplab.data.faults import EXPECTED, DatasetError, Faults, FileFault
from keras_deeplab.data.files import (
    SplitFiles,
    contents,
    entries_named,
    find_splits,
    is_utf8,
    list_split,
)
from keras_deeplab.data.label_codes import (
    LabelCode,
    Settings,
    check_default_ignored,
    color_code,
    ignores_by_default,
    infer_values,
    needs_scan,
    read_settings,
    settled,
)
from keras_deeplab.data.label_maps import (
    Color,
    ColorCode,
    ColorFault,
    LabelFacts,
    label_facts,
    read_label,
    unpacked,
)
from keras_deeplab.data.layout import proposal
from keras_deeplab.data.source import MAX_CLASSES, DatasetInfo, Source

logger = logging.getLogger(__name__)

SAMPLED = 32


@atexit.register
def _release_iterators() -> None:
    """Releases the iterators that exist when a program ends.

    Their threads call Python to read files. Once the interpreter stops, such a call never returns,
    and the iterator would wait for it and keep the process alive.
    """
    for held in gc.get_objects():
        if issubclass(type(held), tf.data.Iterator):
            vars(held).clear()


def map_files(function: Callable[[Path], Any], paths: Iterable[Path]) -> dict[Path, Any]:
    """Calls `function` on each path in a thread pool; a FileFault is returned, not raised."""

    def call(path: Path) -> Any:
        try:
            return function(path)
        except FileFault as fault:
            return fault
        except OSError as error:
            return FileFault("unreadable file", str(error))

    paths = list(paths)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return dict(zip(paths, pool.map(call, paths), strict=True))


def add_file_faults(faults: Faults, root: Path, facts: dict[Path, Any]) -> None:
    """Adds the faults among the results of `map_files`, with their file names."""
    for path, found in facts.items():
        if isinstance(found, FileFault):
            faults.add(found.kind, f"{path.relative_to(root).as_posix()}: {found.found}")


def few_values(where: str, images: Sequence[ImageFacts], faults: Faults) -> Iterator[str]:
    """Yields a warning about 16-bit images; adds a fault if all values fit into 12 bits."""
    deep = [image.largest for image in images if image.bits > 8]
    if not deep:
        return
    found = f"{where}: {len(deep)} images have 16 bits a channel, the largest value is {max(deep)}"
    if 0 < max(deep) <= FEW_BITS:
        faults.add("16-bit images of few values", found)
    dark = sum(0 < largest <= FEW_BITS for largest in deep)
    more = (
        f"; {dark} of them have no value above {FEW_BITS} and become almost black" if dark else ""
    )
    yield f"{found} of 65535, of which the upper 8 bits are used{more}"


class Folder(Source):
    """A folder of images and label maps.

    The folder has subfolders `train`, `val` and `test` (at least one), each with `images` and
    `labels`, in upper or lower case; `images/NAME.jpg` belongs to `labels/NAME.png`. Images are
    JPEG, PNG, BMP, WebP or TIFF files of at most 179 megapixels: grey images become RGB, alpha is
    dropped, and 16-bit samples keep their upper 8 bits (the audit refuses a split whose values all
    fit into 12 bits). EXIF orientations are applied, unless only the stored size equals the label
    map's; `data.audit` reports them. Truncated files are faults.

    Label maps are PNG, TIFF, BMP or .npy files with one channel of values up to 255, or with a
    palette whose indices are the labels; 255 is ignored. The labels of RGB label maps are defined
    by the colours in dataset.json. Hidden files, Thumbs.db and desktop.ini are skipped; files of
    any other type are faults.

    An optional `dataset.json` has the keys `"classes"` (names), `"colors"` (`[red, green, blue]`
    per class, for visualisation and RGB label maps), `"ignore_colors"` (ignored colours of RGB
    label maps, such as `[[224, 224, 192]]` in PASCAL VOC; any other colour is a fault),
    `"ignore_label"` (a mask value or a list, 255 by default) and `"values"` (the mask values of the
    classes in order, such as `[0, 255]`). Without `"classes"`, `"values"` and `"colors"` the
    classes are inferred from the label maps: the values 0, 1, 2, ... without the ignored ones, or
    two classes for masks of exactly 0 and 255. If 255 is not declared and is more than a border
    between classes, or other values occur, the error shows what to write.

    Args:
        root: The folder.

    Raises:
        DatasetError: If `root` is not a folder or has no split; the error suggests a fix. On use,
            if dataset.json is malformed, the classes are unclear, or files are missing or damaged;
            `data.audit` lists all faults at once.

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
        self._listed: dict[str, tuple[SplitFiles, Faults]] = {}
        self._labels: dict[Path, LabelFacts | FileFault] = {}
        self._decoded_bytes: dict[str, int] = {}

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have a folder, in the order train, val, test."""
        return find_splits(self.root)

    def check_split(self, split: str) -> None:
        """Raises a ValueError if `split` is not one of `splits`."""
        try:
            super().check_split(split)
        except ValueError as error:
            raise ValueError(f"{error}. {self.root} holds {contents(self.root)}") from None

    @property
    def info(self) -> DatasetInfo:
        """The classes, from dataset.json or inferred from all label maps."""
        return self._resolved[0]

    @property
    def label_code(self) -> LabelCode:
        """The meaning of the values in the masks."""
        return self._resolved[1]

    @cached_property
    def settings(self) -> Settings:
        """The contents of dataset.json."""
        found = entries_named(self.root, "dataset.json")
        if not found:
            return Settings()
        try:
            if len(found) > 1:
                names = " and ".join(path.name for path in found)
                raise ValueError(f"{names} differ only in case")
            return read_settings(found[0])
        except ValueError as error:
            raise self._error("bad dataset.json", f"dataset.json: {error}") from error

    @cached_property
    def _colors(self) -> ColorCode | None:
        try:
            return color_code(self.settings)
        except DatasetError:
            return None  # `resolve` raises it

    def files(self, split: str) -> tuple[SplitFiles, Faults]:
        """Returns the files of a split, and the faults of their names."""
        self.check_split(split)
        if split not in self._listed:
            faults = Faults()
            self._listed[split] = list_split(self.root, split, faults), faults
        return self._listed[split]

    def labels(self, split: str) -> dict[Path, LabelFacts | FileFault]:
        """Returns the facts of all label maps of a split, each file read once."""
        paths = [path for same in self.files(split)[0].labels.values() for path in same]
        return self._label_facts(paths)

    def _label_facts(self, paths: Sequence[Path]) -> dict[Path, LabelFacts | FileFault]:
        facts = partial(label_facts, colors=self._colors)
        self._labels |= map_files(facts, [path for path in paths if path not in self._labels])
        return {path: self._labels[path] for path in paths}

    def add_label_faults(self, faults: Faults, split: str) -> None:
        """Adds the label maps of a split that cannot be read to `faults`.

        For RGB label maps the fault also suggests a dataset.json with the colours found so far.
        """
        labels = self.labels(split)
        add_file_faults(faults, self.root, labels)
        if any(isinstance(found, ColorFault) for found in labels.values()):
            known = [
                fault.colors for fault in self._labels.values() if isinstance(fault, ColorFault)
            ]
            colors = unpacked(np.unique(np.concatenate(known)))
            if len(colors) <= MAX_CLASSES:
                faults.expect("label map not one-channel", _proposal(colors))

    def pairs(self, split: str) -> list[tuple[str, Path, Path]]:
        """Returns `(name, image file, label file)`, sorted by name; raises if one is missing."""
        files, faults = self.files(split)
        faults.raise_if_any(str(self.root))
        return files.pairs()

    def names(self, split: str) -> list[str]:
        """Returns the file names without their endings, sorted."""
        return [name for name, _, _ in self.pairs(split)]

    def dataset(self, split: str, numbers: tf.data.Dataset | None = None) -> tf.data.Dataset:
        """Returns the decoded pairs of a split (see `data.Source.dataset`)."""
        _, images, labels = zip(*self.pairs(split), strict=True)
        if numbers is None:
            numbers = tf.data.Dataset.range(len(images))
        files = tf.constant([list(map(os.fsencode, images)), list(map(os.fsencode, labels))])
        code, colors = self.label_code, self._colors

        def read(*paths: bytes) -> tuple[np.ndarray, np.ndarray]:
            image_path, label_path = (Path(os.fsdecode(path)) for path in paths)
            with named(label_path):
                label = _labels_of(label_path, code, colors)
            with named(image_path):
                return read_picture(image_path).beside(label.shape), label

        def decode(number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            paths = [files[0, number], files[1, number]]
            image, label = tf.numpy_function(read, paths, [tf.uint8] * 2, stateful=False)
            return tf.ensure_shape(image, (None, None, 3)), tf.ensure_shape(label, (None, None))

        return numbers.map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    def decoded_bytes(self, split: str) -> int:
        """Returns the bytes of the decoded split, from the headers of its images."""
        if split not in self._decoded_bytes:
            sizes = map_files(stored_size, [image for _, image, _ in self.pairs(split)]).values()
            known = [size for size in sizes if not isinstance(size, FileFault)]
            self._decoded_bytes[split] = sum(4 * height * width for height, width in known)
        return self._decoded_bytes[split]

    def resolve(self) -> tuple[DatasetInfo, LabelCode, tuple[str, ...]]:
        """Returns classes, label code and warnings, from the label maps that can be read."""
        settings = self.settings
        if not needs_scan(settings):
            try:
                return *settled(settings), ()
            except ValueError as error:
                raise self._error("bad dataset.json", f"dataset.json: {error}") from error
        scanned = [facts for split in self.splits for facts in self.labels(split).values()]
        readable = [facts for facts in scanned if isinstance(facts, LabelFacts)]
        if not readable:
            raise self._error("classes unclear", "there is no readable label map and no list")
        palette = next((facts.palette for facts in readable if facts.palette), ())
        try:
            values, notes = infer_values([facts.counts for facts in readable], settings.ignored)
            return *settled(settings, values, palette), notes
        except ValueError as error:
            raise self._error("classes unclear", str(error)) from error

    @cached_property
    def _resolved(self) -> tuple[DatasetInfo, LabelCode]:
        info, code, notes = self.resolve()
        if needs_scan(self.settings):
            faults = Faults()
            for split in self.splits:
                self.add_label_faults(faults, split)
            faults.raise_if_any(str(self.root))
            if code.mapping:
                logger.warning(
                    "%s: dataset.json lists no classes; as found in the label maps, %s",
                    self.root,
                    code.mapping,
                )
            for note in notes:
                logger.warning("%s: %s", self.root, note)
        else:
            self._look_at_default_ignored(code)
        return info, code

    def _look_at_default_ignored(self, code: LabelCode) -> None:
        """Warns if some label maps have one class and 255, which is ignored by default.

        `data.audit` checks all of them.
        """
        if not ignores_by_default(self.settings, code):
            return
        paths = [label for _, _, label in self.files(self.splits[0])[0].pairs()]
        found = self._label_facts(paths[:: max(1, len(paths) // SAMPLED)]).values()
        counts = [facts.counts for facts in found if isinstance(facts, LabelFacts)]
        try:
            check_default_ignored(sum(counts, np.zeros(256, np.int64)))
        except ValueError as error:
            logger.warning("%s: of %d label maps, %s", self.root, len(counts), error)

    def _error(self, kind: str, found: str) -> DatasetError:
        faults = Faults()
        faults.add(kind, found)
        return DatasetError(str(self.root), list(faults))


def _proposal(colors: Sequence[Color]) -> str:
    """The dataset.json that RGB label maps require."""
    content = {
        "classes": [f"class_{index}" for index in range(len(colors))],
        "colors": [list(color) for color in colors],
    }
    return (
        f"{EXPECTED['label map not one-channel']}; or the colours of RGB label maps in a "
        f"dataset.json, such as {json.dumps(content)}, with all other colours in "
        '"ignore_colors" instead'
    )


def _labels_of(path: Path, code: LabelCode, colors: ColorCode | None) -> np.ndarray:
    values, _ = read_label(path, colors)
    if not code.known[values].all():
        wrong = np.unique(values[~code.known[values]])
        raise FileFault("label value out of range", str(wrong.tolist()), str(code))
    return code.table[values]
