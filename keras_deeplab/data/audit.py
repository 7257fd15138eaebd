"""The audit of a data set."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from keras_deeplab.data.decoding import ImageFacts, image_facts
from keras_deeplab.data.faults import DatasetError, Faults, FileFault
from keras_deeplab.data.files import check_root
from keras_deeplab.data.folder import Folder, add_file_faults, few_values, map_files
from keras_deeplab.data.label_codes import (
    LabelCode,
    Settings,
    check_default_ignored,
    ignores_by_default,
)
from keras_deeplab.data.label_maps import LabelFacts
from keras_deeplab.data.orientation import UPRIGHT
from keras_deeplab.data.report import Report, SplitReport
from keras_deeplab.data.source import IGNORE_LABEL, DatasetInfo, Source
from keras_deeplab.labels import ClassFrequencies


@dataclass
class _Census:
    """Sizes and pixel counts of the pairs of one split."""

    sizes: list[tuple[int, int]] = field(default_factory=list)
    frequencies: ClassFrequencies = field(default_factory=lambda: ClassFrequencies(IGNORE_LABEL))
    ignored: int = 0
    blank: int = 0

    def add(self, size: tuple[int, int], counts: np.ndarray) -> None:
        """Adds a pair with the number of pixels of each of the 256 labels."""
        self.sizes.append(size)
        self.frequencies.add(counts[:IGNORE_LABEL])
        self.ignored += int(counts[IGNORE_LABEL])
        self.blank += not counts[:IGNORE_LABEL].any()

    def report(self, num_classes: int) -> SplitReport:
        pixels = self.frequencies.pixels
        total = max(1, int(pixels.sum()) + self.ignored)
        sizes = np.array(self.sizes)
        return SplitReport(
            images=len(self.sizes),
            smallest=tuple(sizes.min(axis=0).tolist()),
            largest=tuple(sizes.max(axis=0).tolist()),
            class_share=tuple((pixels[:num_classes] / total).tolist()),
            ignored_share=self.ignored / total,
            where_present=tuple(self.frequencies.where_present[:num_classes].tolist()),
        )


def audit(source: Source | str | os.PathLike, splits: Sequence[str] | None = None) -> Report:
    """Checks every file of a data set before training and raises one error with all faults.

    All images and label maps are decoded, in a thread pool.

    Args:
        source: A `data.Source`, or the path of a folder (see `data.Folder`).
        splits: The splits to check; all by default.

    Returns:
        A `Report`: for each split the number of images, their sizes, and the share of pixels of
        each class and of the ignored label; and warnings, such as a class that never occurs.

    Raises:
        DatasetError: If there are faults. The message lists each kind with its count, what was
            expected and, for the first ten files, what was found.

    Example:

    >>> print(data.audit(data.Shapes()))
    """
    if not isinstance(source, Source):
        source = Folder(source)
    for split in splits or ():
        source.check_split(split)
    look = _audit_folder if isinstance(source, Folder) else _audit_source
    faults, warnings = Faults(), []
    info, code, parts = look(source, tuple(splits or source.splits), faults, warnings)
    warnings += _blank_splits(parts, faults)
    where = str(source.root) if isinstance(source, Folder) else type(source).__name__
    faults.raise_if_any(where)
    reports = {split: part.report(info.num_classes) for split, part in parts.items()}
    return Report(info, reports, (*warnings, *_warnings(info, parts)), code.mapping)


def _warnings(info: DatasetInfo, parts: dict[str, _Census]) -> Iterator[str]:
    for split, part in parts.items():
        absent = [
            name for name, n in zip(info.classes, part.frequencies.pixels, strict=False) if n == 0
        ]
        if absent:
            yield f"{split}: no pixel of {', '.join(absent)}"
        if part.blank:
            yield f"{split}: {part.blank} label maps hold only ignored pixels"


def _audit_source(
    source: Source, splits: Sequence[str], faults: Faults, warnings: list[str]
) -> tuple[DatasetInfo, LabelCode, dict[str, _Census]]:
    """Checks the pairs of a source that reads its files itself."""
    del warnings
    code = LabelCode(tuple(range(source.info.num_classes)))
    parts = {}
    for split in splits:
        part = parts[split] = _Census()
        names = source.names(split)
        pairs = source.checked_dataset(split).as_numpy_iterator()
        if not names:
            faults.add("empty split", f"{split}: no images")
        for name, (image, label) in zip(names, pairs, strict=True):
            shown = f"{split}/{name}"
            try:
                ImageFacts(image.shape[:2]).orientation_for(label.shape)
            except FileFault as fault:
                faults.add(fault.kind, f"{shown}: {fault.found}")
            counts = np.bincount(label.reshape(-1), minlength=256)
            _add_value_fault(faults, shown, counts, code)
            part.add(label.shape, counts)
    return source.info, code, parts


def _audit_folder(
    folder: Folder, splits: Sequence[str], faults: Faults, warnings: list[str]
) -> tuple[DatasetInfo | None, LabelCode | None, dict[str, _Census]]:
    check_root(folder.root, faults)
    info, code = None, None
    try:
        info, code, notes = folder.resolve()
        warnings += notes
    except DatasetError as error:
        faults.extend(error.faults)
    parts, labels = {}, {}
    for split in splits:
        parts[split] = _Census()
        labels |= _audit_split(folder, split, code, faults, warnings, parts[split])
    if code and set(folder.splits) <= set(splits):  # one split alone may lack the other classes
        _check_ignored(folder.settings, code, labels, parts, faults, warnings)
    warnings += _palette_warning(folder.root, labels)
    return info, code, parts


def _audit_split(
    folder: Folder,
    split: str,
    code: LabelCode | None,
    faults: Faults,
    warnings: list[str],
    part: _Census,
) -> dict[Path, LabelFacts]:
    files, name_faults = folder.files(split)
    faults.extend(list(name_faults))
    labels = folder.labels(split)
    images = map_files(image_facts, [path for same in files.images.values() for path in same])
    add_file_faults(faults, folder.root, images)
    folder.add_label_faults(faults, split)
    good = {path: facts for path, facts in labels.items() if isinstance(facts, LabelFacts)}
    for path, facts in good.items() if code else ():
        _add_value_fault(faults, _shown(folder, path), facts.counts, code)
    pairs = []
    for _, image_path, label_path in files.pairs():
        image, label = images[image_path], labels[label_path]
        if isinstance(image, FileFault) or isinstance(label, FileFault):
            continue
        try:
            image.orientation_for(label.size)
            pairs.append((image, label.size))
        except FileFault as fault:
            faults.add(fault.kind, f"{_shown(folder, image_path)}: {fault.found}")
        if code:
            part.add(label.size, np.bincount(code.table, label.counts, 256).astype(np.int64))
    warnings += _image_warnings(split, pairs)
    warnings += few_values(split, [image for image, _ in pairs], faults)
    return good


def _shown(folder: Folder, path: Path) -> str:
    return path.relative_to(folder.root).as_posix()


def _add_value_fault(faults: Faults, shown: str, counts: np.ndarray, code: LabelCode) -> None:
    wrong = np.flatnonzero((counts > 0) & ~code.known)
    if wrong.size:
        listed = ", ".join(f"{value} ({counts[value]} pixels)" for value in wrong[:5])
        more = f" and {wrong.size - 5} other values" * (wrong.size > 5)
        faults.add("label value out of range", f"{shown}: {listed}{more}", str(code))


def _check_ignored(
    settings: Settings,
    code: LabelCode,
    labels: dict[Path, LabelFacts],
    parts: dict[str, _Census],
    faults: Faults,
    warnings: list[str],
) -> None:
    """Checks that ignored pixels are not a class, as training would lack that class."""
    if settings.ignored is None:
        if labels and ignores_by_default(settings, code):
            try:
                warnings += check_default_ignored(sum(facts.counts for facts in labels.values()))
            except ValueError as error:
                faults.add("classes unclear", str(error))
        return
    pixels = sum(part.frequencies.pixels for part in parts.values())
    if any(part.ignored for part in parts.values()) and np.count_nonzero(pixels) == 1:
        faults.add(
            "classes unclear",
            f"the label maps hold only one class and ignored pixels, {settings.ignored}; if "
            'an ignored value is a class, list it in "values" instead',
        )


def _blank_splits(parts: dict[str, _Census], faults: Faults) -> Iterator[str]:
    """Warns about a test split without labels, as published ones are; others are a fault."""
    for split, part in parts.items():
        if part.blank == len(part.sizes) > 0:
            found = f"{split}: all pixels of all label maps are ignored"
            if split == "test":
                yield found
            else:
                faults.add("nothing labelled", found)


def _image_warnings(
    split: str, pairs: Sequence[tuple[ImageFacts, tuple[int, int]]]
) -> Iterator[str]:
    """Warns about EXIF orientations."""
    marked = [(image, size) for image, size in pairs if image.orientation != UPRIGHT]
    told = [(image, size) for image, size in marked if image.size != image.upright_size]
    turned = sum(image.orientation_for(size) != UPRIGHT for image, size in told)
    for count, what in (
        (turned, "are turned by their EXIF orientation, as their label maps are"),
        (
            len(told) - turned,
            "are used as stored in spite of their EXIF orientation, as their label maps are",
        ),
        (
            len(marked) - len(told),
            "are turned by their EXIF orientation, which keeps their size: check that their label "
            "maps lie as viewers show the images",
        ),
    ):
        if count:
            yield f"{split}: {count} images {what}"


def _palette_warning(root: Path, labels: dict[Path, LabelFacts]) -> Iterator[str]:
    """Warns about different palettes, which may number a class differently in each file."""
    first: dict[int, tuple[tuple[int, int, int], Path]] = {}
    for path, facts in labels.items():
        for value in np.flatnonzero(facts.counts[: len(facts.palette)]).tolist():
            color, known = first.setdefault(value, (facts.palette[value], path))
            if color != facts.palette[value]:
                yield (
                    f"palettes differ: index {value} is {color} in "
                    f"{known.relative_to(root).as_posix()} and {facts.palette[value]} in "
                    f"{path.relative_to(root).as_posix()}; the indices are the labels"
                )
                return
