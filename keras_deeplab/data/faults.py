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

LISTED = 10

# Kinds of faults and what was expected, in the order of reports.
EXPECTED = {
    "bad dataset.json": 'keys "classes", "colors", "ignore_colors", "ignore_label", "values"',
    "missing folder": "SPLIT/images and SPLIT/labels, SPLIT being train, val or test",
    "unknown split folder": "folders named train, val or test",
    "empty split": "at least one image with a label map",
    "unsupported file": f"images {listed(IMAGE_SUFFIXES)}, label maps {listed(LABEL_SUFFIXES)}",
    "not a regular file": "regular files, or links to them",
    "duplicate name": "one file of a name, without its ending; one folder of a name, in any case",
    "file name not UTF-8": "names in UTF-8",
    "image without label": "labels/NAME.* for every images/NAME.*",
    "label without image": "images/NAME.* for every labels/NAME.*",
    "JPEG label map": "PNG, since JPEG changes label values",
    "unreadable file": f"a whole file of {listed(tuple(kind.name for kind in FORMATS))}",
    "truncated file": "a whole file",
    "several images in a file": "one image a file",
    "image too large": f"at most {MAX_PIXELS / 1e6:.0f} megapixels; cut larger images into tiles",
    "16-bit images of few values": (
        "16-bit values in 0..65535, of which the upper 8 bits are used; multiply the values of all "
        "images by the same factor, such as 16 for a camera of 12 bits, or store 8 bits"
    ),
    "image of unsupported mode": "8-bit RGB or grey (BMP without a palette)",
    "label map not one-channel": "one 8-bit channel, or a palette whose indices are the labels",
    "colour without a class": 'colours listed in dataset.json as "colors" or "ignore_colors"',
    "sizes differ": "image and label map of the same width x height",
    "label value out of range": "labels in 0..number of classes-1 or ignored",
    "nothing labelled": "pixels of the classes in every split",
    "classes unclear": "label values 0, 1, 2, ... with 255 ignored, or a dataset.json",
}


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
    """

    def __init__(self, where: str, faults: Sequence[Fault]) -> None:
        self.where = where
        self.faults = tuple(faults)
        count = sum(len(fault.found) for fault in self.faults)
        head = f"{where}: {count} fault{'s' * (count != 1)} of {len(self.faults)} kind"
        head += "s" * (len(self.faults) != 1)
        message = "\n".join([head, *map(str, self.faults)])
        # Escaped, as file names that are not UTF-8 cannot be printed.
        super().__init__(message.encode("utf-8", "backslashreplace").decode("utf-8"))


class FileFault(ValueError):
    """One fault of one file; `Faults` collects them."""

    def __init__(self, kind: str, found: str, expected: str | None = None) -> None:
        self.kind = kind
        self.found = found
        super().__init__(f"{kind}: {found} (expected: {expected or EXPECTED[kind]})")


class Faults:
    """Collects faults by kind."""

    def __init__(self) -> None:
        self._found: dict[str, list[str]] = {}
        self._expected: dict[str, str] = {}

    def add(self, kind: str, found: str, expected: str | None = None) -> None:
        """Adds one finding of a kind listed in `EXPECTED`."""
        self._found.setdefault(kind, []).append(found)
        self._expected[kind] = expected or EXPECTED[kind]

    def expect(self, kind: str, expected: str) -> None:
        """Replaces the expectation of a kind."""
        self._expected[kind] = expected

    def extend(self, faults: Sequence[Fault]) -> None:
        """Adds all findings of other faults."""
        for fault in faults:
            for found in fault.found:
                self.add(fault.kind, found, fault.expected)

    def __iter__(self):
        return (
            Fault(kind, self._expected[kind], tuple(self._found[kind]))
            for kind in EXPECTED
            if kind in self._found
        )

    def raise_if_any(self, where: str) -> None:
        """Raises one `DatasetError` with everything collected."""
        if self._found:
            raise DatasetError(where, list(self))
