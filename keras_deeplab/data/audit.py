"""The audit of a data set."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from keras_deeplab.data.decoding import FEW_BITS, ImageFacts
from keras_deeplab.data.diagnostics import Evidence, Finding, findings, look_closely
from keras_deeplab.data.difference_hash import difference_hash
from keras_deeplab.data.faults import MAX_TEXT, DatasetError, FileFault
from keras_deeplab.data.file_source import FileSource, map_files
from keras_deeplab.data.folder import Folder
from keras_deeplab.data.label_codes import LabelCode, check_ignored
from keras_deeplab.data.label_maps import Color, LabelFacts
from keras_deeplab.data.layout import shown
from keras_deeplab.data.opening import open_source
from keras_deeplab.data.orientation import UPRIGHT
from keras_deeplab.data.resized import Resized
from keras_deeplab.data.source import IGNORE_LABEL, DatasetInfo, Source, pairs_or_reasons
from keras_deeplab.labels import WEIGHT_CAP, class_shares, median_frequency_weights
from keras_deeplab.names import printable

MAX_CLASS_NAME = 24
LARGEST_CROP = 513  # of the papers
SCALES = (0.5, 2.0)  # of the papers


@dataclass(frozen=True)
class SplitReport:
    """Statistics of a split; sizes are `(height, width)`, all shares add up to 1.

    Attributes:
        images: Number of images.
        smallest: Smallest height and smallest width.
        largest: Largest height and largest width.
        class_share: Each class' share of all pixels.
        ignored_share: The share of ignored pixels.
        where_present: Each class' share of the valid pixels of the images that contain it, 0 if
            there are none.
    """

    images: int
    smallest: tuple[int, int]
    largest: tuple[int, int]
    class_share: tuple[float, ...]
    ignored_share: float
    where_present: tuple[float, ...]

    @property
    def crop_size(self) -> tuple[int, int]:
        """`(height, width)` to train on: the middle of the sizes, up to 513, as `fit` chooses."""
        sizes = zip(self.smallest, self.largest, strict=True)
        height, width = (min((low + high) // 2, LARGEST_CROP) for low, high in sizes)
        return height, width


@dataclass(frozen=True)
class Report:
    """Report of `data.audit` on a data set without faults; `print` shows it as a table.

    Attributes:
        info: Classes and colours.
        splits: A `SplitReport` per split.
        warnings: What is valid but rarely intended, such as a class that never occurs.
        findings: Probable mistakes that a check of values cannot see, such as label maps that are
            shifted against their images, the most certain first.
    """

    info: DatasetInfo
    splits: dict[str, SplitReport]
    warnings: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()

    def __str__(self) -> str:
        """Returns sizes, pixel shares per class and split, and the warnings."""
        parts = self.splits.values()
        lines = []
        for split, part in self.splits.items():
            sizes = dict.fromkeys(f"{w}x{h}" for h, w in (part.smallest, part.largest))
            lines.append(f"{split}: {part.images} images, {' to '.join(sizes)}")
        names = (*map(printable, self.info.classes), "ignored")
        width = min(max(map(len, names)), MAX_CLASS_NAME)
        lines.append("pixels".ljust(width) + "".join(f"{split:>9}" for split in self.splits))
        shares = zip(*((*part.class_share, part.ignored_share) for part in parts), strict=True)
        for name, row in zip(names, shares, strict=True):
            cells = "".join(f"{100 * share:8.2f}%" for share in row)
            lines.append(name[:width].ljust(width) + cells)
        lines += [f"warning: {warning}" for warning in self.warnings]
        lines += [f"{'warning' if one.is_warning else 'note'}: {one}" for one in self.findings]
        return "\n".join(printable(line, MAX_TEXT) for line in lines)

    @property
    def scales(self) -> tuple[float, float]:
        """Smallest and largest random scale: 0.5 and 2, wider where val has other sizes than train.

        Objects of val are then larger or smaller by the ratio of the sizes.
        """
        low, high = SCALES
        if not {"train", "val"} <= set(self.splits):
            return low, high
        sides = [
            np.add(self.splits[split].smallest, self.splits[split].largest)
            for split in ("train", "val")
        ]
        ratio = float(np.sqrt(np.prod(sides[1] / sides[0])))
        return round(low * min(1.0, ratio), 2), round(high * max(1.0, ratio), 2)

    @property
    def class_weights(self) -> tuple[float, ...]:
        """Weights by median frequency balancing on train, 0 for absent classes; () without it.

        As of `losses.class_weights` and the recipes' `class_weights="median"`.
        """
        if "train" not in self.splits:
            return ()
        weights = median_frequency_weights(np.array(self.splits["train"].where_present))
        return tuple(np.minimum(weights, WEIGHT_CAP).tolist())

    def to_dict(self) -> dict[str, Any]:
        """Returns a dict of all figures for `json.dump`."""
        return {
            **self.info.to_dict(),
            "splits": {
                split: {**vars(part), "crop_size": part.crop_size}
                for split, part in self.splits.items()
            },
            "scales": list(self.scales),
            "class_weights": list(self.class_weights),
            "warnings": list(self.warnings),
            "findings": [finding.to_dict() for finding in self.findings],
        }


# The name, the image and the label map of a pair.
Pair = tuple[str, ImageFacts, LabelFacts]
Remark = FileFault | str  # an error, or a warning


def audit(source: Source | str | os.PathLike, splits: Sequence[str] | None = None) -> Report:
    """Checks every file of a data set before training and raises one error with all faults.

    All images and label maps are decoded, in a thread pool. Up to 128 pairs of each split are
    looked at more closely for mistakes that leave valid values: label maps that were resized
    bilinearly or shifted, masks of 0 and 255, images in two splits. They are `findings` of the
    report, or the probable causes in the error.

    Args:
        source: A `data.Source`, or the argument of `open_source`.
        splits: The splits to check; all by default.

    Returns:
        A `Report`: for each split the number of images, their sizes, and the share of pixels of
        each class and of the ignored label; warnings, such as a class that never occurs; and the
        findings.

    Raises:
        DatasetError: If there are faults. The message lists each kind with its count, what was
            expected and, for the first ten files, what was found.

    Example:

    >>> print(data.audit(data.Shapes()))
    """
    source = open_source(source)
    for split in splits or ():
        source.check_split(split)
    if isinstance(source, Resized):
        return _resized_report(audit(source.source, splits), source)
    splits = tuple(splits or source.splits)
    found: list[Remark] = []
    if isinstance(source, Folder):
        info, code = _classes_of_folder(source, splits, found)
    elif isinstance(source, FileSource):
        info, code = source.info, source.code
    else:
        info, code = source.info, LabelCode(tuple(range(source.info.num_classes)))
    pairs_of = _pairs_of_files if isinstance(source, FileSource) else _pairs_of_source
    reports, evidence = {}, Evidence(info, code)
    if isinstance(source, Folder):
        evidence.listed_colors = source.listed_colors
    for split in splits:
        pairs, everything = [], []
        for pair in pairs_of(source, split, found):
            faults = _faults_of_pair(*pair, code)
            found += faults
            everything.append(pair)
            pairs += [] if faults else [pair]
        if everything:
            evidence.names[split] = [name for name, _, _ in everything]
            evidence.counts[split] = np.array([label.counts for _, _, label in everything])
            evidence.hashes[split] = [image.difference_hash for _, image, _ in everything]
        look_closely(evidence, source, split)
        found += _findings_of_images(split, pairs)
        if code and pairs:
            reports[split] = _split_report(split, pairs, info, code, found)
    faults = [one for one in found if isinstance(one, FileFault)]
    causes = findings(evidence)
    if faults:
        where = str(getattr(source, "root", type(source).__name__))
        if isinstance(source, FileSource):
            source.forget()  # so that another audit sees what was repaired
        raise DatasetError(where, faults, [str(one) for one in causes if one.is_warning])
    return Report(info, reports, tuple(found), causes)


def _resized_report(report: Report, source: Resized) -> Report:
    """The report of the original images with their new sizes; shares stay about the same."""

    def resized(part: SplitReport) -> SplitReport:
        return replace(part, **{k: source.size(getattr(part, k)) for k in ("smallest", "largest")})

    return replace(report, splits={split: resized(part) for split, part in report.splits.items()})


def _pairs_of_source(source: Source, split: str, found: list[Remark]) -> Iterator[Pair]:
    names = source.names(split)
    if not names:
        found.append(FileFault("empty split", f"{split}: no images"))
    for name, pair in zip(names, pairs_or_reasons(source.checked_dataset(split)), strict=True):
        if isinstance(pair, str):
            text = "an image and a label map that can be read"
            found.append(FileFault("unreadable file", f"{split}/{name}: {pair}", text))
            continue
        image, label = pair
        facts = LabelFacts(label.shape, np.bincount(label.reshape(-1), minlength=256))
        of_image = ImageFacts(image.shape[:2], difference_hash=difference_hash(image))
        yield f"{split}/{name}", of_image, facts


def _pairs_of_files(source: FileSource, split: str, found: list[Remark]) -> Iterator[Pair]:
    files = source.files(split)
    bands = source.bands

    def facts(_: str, path: Path) -> ImageFacts:
        picture = bands.read(path, thorough=True)
        return replace(picture.facts, difference_hash=difference_hash(picture.pixels))

    images, image_faults = map_files(facts, files.images, source.root)
    labels, label_faults = source.labels(split)
    found += [*files.faults, *image_faults, *label_faults]
    found += [f"{split}: {warning}" for warning in files.warnings]
    if not (files.images or files.labels or files.faults):
        found.append(FileFault("empty split", f"{split}: no images"))
    for name, _, _ in files.pairs():
        if name in images and name in labels:
            yield f"{split}/{name}", images[name], labels[name]


def _faults_of_pair(
    name: str, image: ImageFacts, label: LabelFacts, code: LabelCode | None
) -> list[FileFault]:
    faults = []
    wrong = np.flatnonzero((label.counts > 0) & ~code.known) if code else np.array([])
    if wrong.size:
        found = ", ".join(f"{value} ({label.counts[value]} pixels)" for value in wrong[:5])
        more = f" and {wrong.size - 5} other values" * (wrong.size > 5)
        expected = f'{code}; a dataset.json may list others, as classes or in "ignore_label"'
        faults.append(FileFault("label value out of range", f"{name}: {found}{more}", expected))
    try:
        image.orientation_for(label.size)
    except FileFault as fault:
        faults.append(FileFault(fault.kind, f"{name}: {fault.found}"))
    return faults


def _classes_of_folder(
    folder: Folder, splits: Sequence[str], found: list[Remark]
) -> tuple[DatasetInfo | None, LabelCode | None]:
    """Returns classes and label code, None if they are unclear."""
    found += folder.check_layout()
    try:
        info, code, notes = folder.resolve()
    except DatasetError as error:
        found += error.found
        return None, None
    found += notes
    labels = {}
    for split in splits:
        paths = folder.files(split).labels  # once: it lists the root, which may be remote
        labels |= {paths[name]: facts for name, facts in folder.labels(split)[0].items()}
    found += _palette_warning(folder.root, labels)
    listed = folder.settings.values or folder.settings.ignore_label is not None
    # One split alone may lack the other classes.
    if labels and listed and set(folder.splits) <= set(splits):
        try:
            counts = sum(facts.counts for facts in labels.values())
            found += check_ignored(counts, folder.settings, code)
        except ValueError as error:
            found.append(FileFault("classes unclear", str(error)))
    return info, code


def _split_report(
    split: str, pairs: Sequence[Pair], info: DatasetInfo, code: LabelCode, found: list[Remark]
) -> SplitReport:
    """Counts pixels; a split without labels is a fault, except test, as published ones are."""
    counts = np.array([np.bincount(code.table, label.counts, 256) for _, _, label in pairs])
    ignored, total = counts[:, IGNORE_LABEL], counts.sum()
    counts = counts[:, : info.num_classes]
    blank = int(np.sum(counts.sum(1) == 0))
    if blank == len(pairs) and split != "test":
        text = f"{split}: all pixels of all label maps are ignored"
        found.append(FileFault("nothing labelled", text))
    elif blank:
        found.append(f"{split}: {blank} of {len(pairs)} label maps hold only ignored pixels")
    absent = [name for name, pixels in zip(info.classes, counts.sum(0), strict=True) if not pixels]
    if absent:
        found.append(f"{split}: no pixel of {', '.join(absent)}")
    sizes = np.array([label.size for _, _, label in pairs])
    return SplitReport(
        images=len(pairs),
        smallest=tuple(sizes.min(axis=0).tolist()),
        largest=tuple(sizes.max(axis=0).tolist()),
        class_share=tuple((counts.sum(0) / total).tolist()),
        ignored_share=float(ignored.sum() / total),
        where_present=tuple(class_shares(counts)[1].tolist()),
    )


def _findings_of_images(split: str, pairs: Sequence[Pair]) -> Iterator[Remark]:
    """Warns about EXIF orientations, dark and 16-bit images; a fault if all fit into 12 bits."""
    applied = [
        image.orientation_for(label.size) != UPRIGHT
        for _, image, label in pairs
        if image.orientation != UPRIGHT
    ]
    for choice, what in (
        (True, "turned by their EXIF orientation: check that their label maps are too"),
        (False, "used as stored in spite of their EXIF orientation, as their label maps are"),
    ):
        if choice in applied:
            yield f"{split}: {applied.count(choice)} images are {what}"
    black = sum(image.is_dark for _, image, _ in pairs)
    if black:
        text = "have no value above a sixteenth of the range in dataset.json: almost black"
        yield f"{split}: {black} of {len(pairs)} images {text}"
    deep = [image.largest for _, image, _ in pairs if image.largest]
    dark = sum(largest <= FEW_BITS for largest in deep)
    text = f"{split}: {len(deep)} images have 16 bits a channel"
    if 0 < dark == len(deep):
        text = f"{text}, the largest value is {max(deep)}"
        yield FileFault("16-bit images of few values", text)
    elif deep:
        more = f"; {dark} of them have no value above {FEW_BITS} and become almost black"
        yield text + more * bool(dark)


def _palette_warning(root: Path, labels: dict[Path, LabelFacts]) -> Iterator[str]:
    """Warns about different palettes, which may number a class differently in each file."""
    first: dict[int, tuple[Color, Path]] = {}
    recolored = sum(facts.palette is None for facts in labels.values())
    if recolored:
        text = "have the colours of dataset.json in another order, and are read by colours"
        yield f"the palettes of {recolored} label maps {text}: their indices are not the labels"
    for path, facts in labels.items():
        for value, color in enumerate(facts.palette or ()):
            if facts.counts[value] and first.setdefault(value, (color, path))[0] != color:
                files = f"{shown(root, first[value][1])} and {shown(root, path)}"
                yield f"the palettes of {files} have different colours for the label {value}"
                return
