"""Faults of data sets, collected and reported together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from keras_deeplab.data.formats import (
    FORMATS,
    IMAGE_SUFFIXES,
    LABEL_SUFFIXES,
    MAX_PIXELS,
    listed,
)
from keras_deeplab.names import printable

LISTED = 10
MAX_TEXT = 10_000  # of a fault, which may list many names

# Kinds of faults and what was expected, in the order of reports.
EXPECTED = {
    "bad dataset.json": (
        'keys "classes", "colors", "ignore_colors", "ignore_label", "values", "channels", "range"'
    ),
    "bad splits.json": '{"train": [names], "val": [names]} of the images that are there, each once',
    "bad class list": "the list as the annotation tool writes it, or a dataset.json instead",
    "bad list": "IMAGE,LABEL or IMAGE,LABEL,SPLIT in each row, paths relative to the list",
    "bad annotation": "outlines of at least three points inside an image of known size",
    "missing folder": "SPLIT/images and SPLIT/labels, SPLIT being train, val or test",
    "unknown split folder": "folders named train, val or test alone",
    "folder beside those of splits": (
        "folders named train, val or test alone, or a splits.json that divides the others' images"
    ),
    "empty split": "at least one image with a label map",
    "unsupported file": f"images {listed(IMAGE_SUFFIXES)}, label maps {listed(LABEL_SUFFIXES)}",
    "not a regular file": "regular files, or links to them",
    "folder in many places": "links that lead to a folder by at most 1000 paths",
    "remote file": "a local copy of the data set, as these files are read in parts",
    "duplicate name": "one file of a name, without its ending; one folder of a name, in any case",
    "file name not UTF-8": "names in UTF-8",
    "image without label": "labels/NAME.* for every images/NAME.*",
    "label without image": "images/NAME.* for every labels/NAME.*",
    "JPEG label map": "PNG, exported again, since JPEG changes label values",
    "unreadable file": f"a whole file of {listed(FORMATS)}",
    "truncated file": "a whole file",
    "several images in a file": "one image a file",
    "image too large": f"at most {MAX_PIXELS / 1e6:.0f} megapixels; cut larger images into tiles",
    "16-bit images of few values": (
        "16-bit values in 0..65535, of which the upper 8 bits are used; write the range of values "
        'into dataset.json, such as "range": [0, 4095] for a camera of 12 bits, or store 8 bits'
    ),
    "other number of channels": 'the "channels" of dataset.json',
    "image of unsupported mode": (
        "8-bit RGB or grey (BMP without a palette); for more bands, or other values, "
        '"channels" or "range" in dataset.json'
    ),
    "label map not one-channel": (
        "one 8-bit channel, a palette whose indices are the labels, or, in a folder or list, RGB "
        'colours listed in dataset.json, such as {"colors": [[0, 0, 0], [128, 0, 0]]}'
    ),
    "colour without a class": 'colours listed in dataset.json as "colors" or "ignore_colors"',
    "sizes differ": (
        "image and label map of the same width x height; resize label maps of the same view with "
        "nearest neighbour"
    ),
    "label value out of range": "labels in 0..number of classes-1 or ignored",
    "nothing labelled": "pixels of the classes in every split",
    "classes unclear": "label values 0, 1, 2, ... with 255 ignored, or a dataset.json",
}


def _printable(text: str) -> str:
    """Names of files, and those in annotations, may have escape sequences and line ends."""
    return printable(text, MAX_TEXT)


class FileFault(ValueError):
    """One fault of one file or folder; `colors` are those of an RGB label map without a list."""

    def __init__(
        self, kind: str, found: str, expected: str = "", colors: Sequence[Sequence[int]] = ()
    ) -> None:
        self.kind = kind
        self.found = found
        self.colors = colors
        self.expected = expected or EXPECTED[kind]
        super().__init__(_printable(f"{kind}: {found} (expected: {self.expected})"))


@dataclass(frozen=True)
class Fault:
    """All faults of one kind: what was expected and, per file, what was found."""

    kind: str
    expected: str
    found: tuple[str, ...]

    def __str__(self) -> str:
        """Returns the kind, the count, what was expected and the first ten findings."""
        lines = [f"- {self.kind} ({len(self.found)}); expected: {self.expected}"]
        lines += [f"    {entry}" for entry in self.found[:LISTED]]
        if len(self.found) > LISTED:
            lines.append(f"    ... and {len(self.found) - LISTED} more")
        return "\n".join(lines)


class DatasetError(ValueError):
    """All faults of a data set in one message.

    Attributes:
        faults: One `Fault` per kind found.
        causes: What probably led to them, as far as the audit knows.
    """

    def __init__(self, where: str, found: Sequence[FileFault], causes: Sequence[str] = ()) -> None:
        self.found, self.causes = tuple(found), tuple(map(_printable, causes))
        kinds = {kind: [fault for fault in found if fault.kind == kind] for kind in EXPECTED}
        self.faults = tuple(
            Fault(kind, _printable(same[0].expected), tuple(_printable(one.found) for one in same))
            for kind, same in kinds.items()
            if same
        )
        head = f"{_printable(where)}: {len(found)} fault{'s' * (len(found) != 1)}"
        probable = [f"probable cause: {cause}" for cause in self.causes]
        super().__init__("\n".join([head, *probable, *map(str, self.faults)]))

    def to_dict(self) -> dict[str, object]:
        """Returns a dict for `json.dump`."""
        return {"causes": list(self.causes), "faults": [vars(fault) for fault in self.faults]}
