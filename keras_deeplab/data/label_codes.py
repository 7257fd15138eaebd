"""The meaning of the values in label maps: from dataset.json, or inferred from their counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

import numpy as np

from keras_deeplab import validation
from keras_deeplab.data.label_maps import Color, ColorCode
from keras_deeplab.data.source import IGNORE_LABEL, MAX_CLASSES, DatasetInfo
from keras_deeplab.files import read_json_object

# ADE20K, the largest common label set without a list of values, has 150 classes and "other".
MAX_INFERRED_CLASSES = 151
# A class below this share of all pixels, in one label map only, may be stray pixels.
RARE = 1e-4
# If all classes but the largest hold less than this share of the ignored pixels, the ignored value
# may be a class: with classes that are inferred or listed. Inside PASCAL VOC's border of 5 pixels,
# discs 10 pixels wide still have 12 % of its pixels.
FEW_OF_INFERRED = 0.1
FEW_OF_LISTED = 0.01
LISTED_VALUES = 10


@dataclass(frozen=True)
class Settings:
    """The contents of a dataset.json."""

    classes: tuple[str, ...] = ()
    values: tuple[int, ...] = ()
    colors: tuple[Color, ...] = ()
    ignore_colors: tuple[Color, ...] = ()
    ignore_label: tuple[int, ...] | None = None

    @property
    def lists_classes(self) -> bool:
        """Whether the classes are listed; else they are inferred from the label maps."""
        return bool(self.classes or self.values or self.colors)


@dataclass(frozen=True)
class LabelCode:
    """The meaning of mask values: `values[k]` is label k, and `ignored` ones become 255."""

    values: tuple[int, ...]
    ignored: tuple[int, ...] = (IGNORE_LABEL,)

    @cached_property
    def known(self) -> np.ndarray:
        """Whether each of the 256 mask values is a class or ignored."""
        return np.isin(np.arange(256), self.values + self.ignored)

    @cached_property
    def table(self) -> np.ndarray:
        """The uint8 label for each of the 256 mask values."""
        table = np.full(256, IGNORE_LABEL, np.uint8)
        table[list(self.values)] = np.arange(len(self.values))
        return table

    def __str__(self) -> str:
        """Returns the expected values, such as `0..10, ignored: 11`."""
        ignored = f", ignored: {_series(self.ignored)}" if self.ignored else ""
        return _series(self.values) + ignored

    @property
    def mapping(self) -> str:
        """The mask values of the labels as text, empty if they are the same."""
        labels = tuple(range(len(self.values)))
        same = self.values == labels
        return "" if same else f"labels {_series(labels)} are the mask values {self}"


def _series(numbers: Sequence[int]) -> str:
    if len(numbers) > 2 and tuple(numbers) == tuple(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]}..{numbers[-1]}"
    return ", ".join(map(str, numbers))


def _is_name(item: Any) -> bool:
    return isinstance(item, str) and bool(item)


def _is_byte(item: Any) -> bool:
    return validation.is_integer(item, 0) and item <= 255


def _is_color(item: Any) -> bool:
    return isinstance(item, list) and len(item) == 3 and all(map(_is_byte, item))


# What the list of each key holds.
_ITEMS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "classes": (_is_name, "different names"),
    "values": (_is_byte, "different mask values in 0..255"),
    "colors": (_is_color, "[red, green, blue] in 0..255"),
    "ignore_colors": (_is_color, "[red, green, blue] in 0..255"),
    "ignore_label": (_is_byte, "mask values in 0..255"),
}


def read_settings(path: Path) -> Settings:
    """Reads a dataset.json; raises one ValueError that lists all problems."""
    lists: dict[str, tuple] = {}
    problems = []
    for key, value in read_json_object(path).items():
        if key not in _ITEMS:
            problems.append(f"unknown key {key!r} (known: {', '.join(_ITEMS)})")
            continue
        is_item, rule = _ITEMS[key]
        items = [value] if key == "ignore_label" and not isinstance(value, list) else value
        valid = isinstance(items, list) and len(items) <= MAX_CLASSES and all(map(is_item, items))
        if valid and key in ("classes", "values"):
            valid = 0 < len(items) == len(set(items))
        if valid:
            lists[key] = tuple(tuple(item) if isinstance(item, list) else item for item in items)
        else:
            rule = f'"{key}" must list up to {MAX_CLASSES} {rule}'
            problems.append(f"{rule}. Received: {shortened(value)}")
    settings = Settings(**lists)
    problems = problems or _disagreements(settings)
    if problems:
        raise ValueError("; ".join(problems))
    return settings


def _disagreements(settings: Settings) -> list[str]:
    """Problems between keys that are valid on their own."""
    problems = []
    listed = {"classes": settings.classes, "colors": settings.colors, "values": settings.values}
    lengths = {key: len(items) for key, items in listed.items() if items}
    if len(set(lengths.values())) > 1:
        text = ", ".join(f'"{key}" has {length}' for key, length in lengths.items())
        problems.append(f"lists must be of one length: {text}")
    if settings.ignore_colors and not settings.colors:
        problems.append('"ignore_colors" requires "colors", those of the classes')
    for key, items, classes in (
        ("ignore_colors", settings.ignore_colors, settings.colors),
        ("ignore_label", settings.ignore_label or (), _values(settings)),
    ):
        both = sorted(set(items) & set(classes))
        if both:
            problems.append(f'"{key}" {both} are also listed as classes')
    return problems


def _values(settings: Settings) -> tuple[int, ...]:
    return settings.values or tuple(range(len(settings.classes or settings.colors)))


def settled(
    settings: Settings, inferred: tuple[int, ...] = (), palette: tuple[Color, ...] = ()
) -> tuple[DatasetInfo, LabelCode]:
    """Returns classes and label code of settings, with defaults for missing keys."""
    values = _values(settings) or inferred
    classes = settings.classes or tuple(f"class_{index}" for index in range(len(values)))
    colors = settings.colors
    if not colors and max(values) < len(palette):
        colors = tuple(palette[value] for value in values)
    return DatasetInfo(classes, colors), LabelCode(values, _ignored(settings, values))


def _ignored(settings: Settings, values: tuple[int, ...]) -> tuple[int, ...]:
    """The ignored mask values, given those of the classes."""
    default = () if IGNORE_LABEL in values else (IGNORE_LABEL,)
    ignored = default if settings.ignore_label is None else settings.ignore_label
    if settings.ignore_colors and not ignored:  # which need a value too
        return (min(set(range(256)) - set(values)),)
    return ignored


def color_code(settings: Settings) -> ColorCode | None:
    """Returns the mask values of the colours in RGB label maps; None if none are listed."""
    if not settings.colors:
        return None
    values = _values(settings)
    ignored = _ignored(settings, values)[:1] * len(settings.ignore_colors)
    return ColorCode((*settings.colors, *settings.ignore_colors), (*values, *ignored))


def infer_values(
    maps: Sequence[np.ndarray], ignored: tuple[int, ...] | None
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Infers the mask values of the classes from those that occur; returns them and warnings.

    `maps` has the pixels of each of the 256 values in each label map. `ignored` has the values that
    dataset.json ignores; with None, 255 is ignored unless the masks hold only 0 and 255. Raises a
    ValueError if the values do not look like labels, or 255 not like an ignored border.
    """
    counts = sum(maps)
    found = np.flatnonzero(counts).tolist()
    skipped = (IGNORE_LABEL,) if ignored is None else ignored
    used = [value for value in found if value not in skipped]
    values = tuple(value for value in range(max(used, default=0) + 1) if value not in skipped)
    why = None
    if (found if ignored is None else used) == [0, IGNORE_LABEL]:
        values = (0, IGNORE_LABEL)
    elif len(used) < 2:
        why = "fewer than two values are left for the classes"
    # If half of the labels are absent, the values are codes (0, 128), not class numbers.
    elif len(values) > MAX_INFERRED_CLASSES or 2 * len(used) < len(values):
        why = "the values are not the numbers 0, 1, 2 and so on"
    elif ignored is None:
        why = _doubt(counts, values, (IGNORE_LABEL,), FEW_OF_INFERRED) or _doubt_of_border(maps)
    if why:
        raise ValueError(f"{why}. {_advice(counts, ignored)}")
    notes = list(_rare(maps, counts, values))
    if ignored is None and IGNORE_LABEL not in values:
        notes += _wide_border(counts)
    if values[0] == 0 and used[0] != 0:
        notes.append(
            "no label map holds 0, so that class 0 has no pixels; if the labels count from 1, "
            f'write "values": {shortened(list(values[1:]))} into dataset.json'
        )
    return values, tuple(notes)


def check_ignored(counts: np.ndarray, settings: Settings, code: LabelCode) -> list[str]:
    """Checks that ignored values, given the pixels of each value, are not a class; warns.

    Raises a ValueError if only one class occurs beside them. If 255 is ignored by default, stray
    pixels do not count.
    """
    by_default = settings.ignore_label is None and not settings.ignore_colors
    why = _doubt(counts, code.values, code.ignored, FEW_OF_LISTED if by_default else 0)
    if why:
        pair = [max(values, key=counts.__getitem__) for values in (code.values, code.ignored)]
        advice = f'Write "values": {pair} into dataset.json if {pair[1]} is a class'
        if by_default:
            advice += ', or "ignore_label": 255 if it is ignored'
        raise ValueError(f"{why}. {advice}")
    return _wide_border(counts) if by_default and code.ignored else []


def _doubt(
    counts: np.ndarray, values: Sequence[int], ignored: Sequence[int], few: float
) -> str | None:
    """Why ignored values may be a class: all classes but one have few pixels beside them."""
    of_class = counts[list(values)]
    hidden, rest = int(counts[list(ignored)].sum()), int(of_class.sum() - of_class.max())
    if not hidden or not of_class.any() or rest > few * hidden:
        return None
    return (
        f"{_pixels(hidden, counts)} are ignored ({_series(ignored)}), but all classes except "
        f"{values[of_class.argmax()]} hold {_pixels(rest, counts)} together"
    )


def _doubt_of_border(maps: Sequence[np.ndarray]) -> str | None:
    """Why 255, which dataset.json does not mention, may be a class and no border between two."""
    hidden = sum(counts[IGNORE_LABEL] for counts in maps)
    if 2 * hidden > sum(counts.sum() for counts in maps):
        return f"255 holds {_pixels(hidden, sum(maps))}"
    lone = sum(m[IGNORE_LABEL] for m in maps if np.count_nonzero(np.delete(m, IGNORE_LABEL)) == 1)
    if 2 * lone <= hidden:
        return None
    return (
        f"{lone} of the {hidden} pixels of 255 are in label maps with one class only (if a class "
        "is 255 in some files and another value in others, save it with one value)"
    )


def _wide_border(counts: np.ndarray) -> list[str]:
    if 5 * counts[IGNORE_LABEL] <= counts.sum():
        return []
    return [
        f"255 is ignored and holds {_pixels(counts[IGNORE_LABEL], counts)}; write "
        '"ignore_label": 255 into dataset.json if that is right'
    ]


def _rare(maps: Sequence[np.ndarray], counts: np.ndarray, values: Sequence[int]) -> Iterator[str]:
    for value in values:
        if 0 < counts[value] < RARE * counts.sum() and sum(m[value] > 0 for m in maps) == 1:
            yield (
                f"value {value} counts as a class, but only one label map holds it, on "
                f"{_pixels(counts[value], counts)}"
            )


def _pixels(count: int, counts: np.ndarray) -> str:
    return f"{count} pixel{'' if count == 1 else 's'} ({count / counts.sum():.2%})"


def _advice(counts: np.ndarray, ignored: tuple[int, ...] | None) -> str:
    """What to write into dataset.json about ambiguous values."""
    found = np.flatnonzero(counts).tolist()
    figures = [f"{value} ({counts[value]} pixels)" for value in found[:LISTED_VALUES]]
    figures += ["..."] * (len(found) > LISTED_VALUES)
    left = [value for value in found if value not in (ignored or ())]
    if len(left) < 2:
        left, ignored = found, None
    others = [value for value in left if value != IGNORE_LABEL]
    if ignored is None and len(left) > len(others) > 1:
        stray = others[1:]
        if others[0] == 0 and 10 * counts[stray].sum() < counts[IGNORE_LABEL]:
            of_class = _example([0, IGNORE_LABEL], stray)
        else:
            of_class = _example(left)
        shown = f"{of_class} if 255 is a class, or {_example(others, [255])} if 255 is ignored"
    else:
        shown = f'such as {_example(left, ignored)}, with those that are none in "ignore_label"'
    return (
        f"The label maps hold the values {', '.join(figures)}. Write a dataset.json that says "
        f"which values are classes: {shown}"
    )


def _example(values: Sequence[int], ignored: Sequence[int] | None = None) -> str:
    """A dataset.json with at least two classes."""
    if len(values) < 2:
        values = sorted({0, *values}) if any(values) else [0, 1]
    also = f', "ignore_label": {shortened(list(ignored))}' if ignored else ""
    return f'{{"values": {shortened(list(values))}{also}}}'
