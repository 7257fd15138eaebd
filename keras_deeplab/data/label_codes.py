"""The meaning of the values in label maps: from dataset.json, or inferred from their counts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

import numpy as np

from keras_deeplab import validation
from keras_deeplab.data.label_maps import ColorCode
from keras_deeplab.data.source import IGNORE_LABEL, MAX_CLASSES, DatasetInfo
from keras_deeplab.files import read_json_object

# ADE20K, the largest common label set without a list of values, has 150 classes and "other".
MAX_INFERRED_CLASSES = 151
# A class below this share of all pixels, in one label map only, may be stray pixels.
RARE = 1e-4
# Classes below this share of the ignored pixels may be stray pixels.
STRAY = 1e-2
LISTED_VALUES = 10


@dataclass(frozen=True)
class Settings:
    """The contents of a dataset.json; None stands for a missing key."""

    classes: tuple[str, ...] | None = None
    colors: tuple[tuple[int, int, int], ...] | None = None
    ignored: tuple[int, ...] | None = None
    values: tuple[int, ...] | None = None
    ignored_colors: tuple[tuple[int, int, int], ...] = ()


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
        """Returns the expected values, such as `0..10 or 11 (ignored)`."""
        text = f"0..{len(self.values) - 1}"
        if self.values != tuple(range(len(self.values))):
            text = ", ".join(map(str, self.values))
        if self.ignored:
            text += f" or {', '.join(map(str, self.ignored))} (ignored)"
        return text

    @property
    def mapping(self) -> str:
        """The mask values of the labels as text, empty if they are the same."""
        labels = range(len(self.values))
        if self.values == tuple(labels):
            return ""
        ignored = f"; ignored: {_series(self.ignored)}" if self.ignored else ""
        return f"mask values {_series(self.values)} are the labels {_series(labels)}{ignored}"


def _series(numbers: Sequence[int]) -> str:
    """Numbers as text, such as `0 and 255`, `1, 3, 4` or `1..150`."""
    if len(numbers) > 2 and tuple(numbers) == tuple(range(numbers[0], numbers[0] + len(numbers))):
        return f"{numbers[0]}..{numbers[-1]}"
    return " and ".join(map(str, numbers)) if len(numbers) == 2 else ", ".join(map(str, numbers))


def read_settings(path: Path) -> Settings:
    """Reads a dataset.json; raises one ValueError that lists all problems."""
    content = read_json_object(path)
    problems = [
        f"unknown key {key!r} (known: {', '.join(_RULES)})"
        for key in content.keys() - _RULES.keys()
    ]
    problems += [
        f'"{key}" must {rule}. Received: {shortened(content[key])}'
        for key, (is_valid, rule) in _RULES.items()
        if key in content and not is_valid(content[key])
    ]
    problems = problems or _disagreements(content)
    if problems:
        raise ValueError("; ".join(problems))
    return Settings(
        classes=_tuple(content.get("classes")),
        colors=content.get("colors") and tuple(map(tuple, content["colors"])),
        ignored=_tuple(_as_list(content["ignore_label"]) if "ignore_label" in content else None),
        values=_tuple(content.get("values")),
        ignored_colors=tuple(map(tuple, content.get("ignore_colors", ()))),
    )


def _tuple(content: list | None) -> tuple | None:
    return None if content is None else tuple(content)


def _as_list(content: Any) -> list:
    return content if isinstance(content, list) else [content]


def _is_byte(value: Any) -> bool:
    return validation.is_integer(value, 0) and value <= 255


def _is_color(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_is_byte, value))


def _is_set(value: Any, is_item: Callable[[Any], bool]) -> bool:
    """Whether a value is a list of 1 to 255 different items."""
    return (
        isinstance(value, list)
        and 1 <= len(value) <= MAX_CLASSES
        and all(map(is_item, value))
        and len(set(value)) == len(value)
    )


def _are_colors(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= MAX_CLASSES and all(map(_is_color, value))


# What each key of a dataset.json must be.
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "classes": (
        lambda value: _is_set(value, lambda name: isinstance(name, str) and bool(name)),
        f"list 1 to {MAX_CLASSES} different names",
    ),
    "colors": (_are_colors, f"list up to {MAX_CLASSES} [red, green, blue] in 0..255"),
    "ignore_colors": (_are_colors, f"list up to {MAX_CLASSES} [red, green, blue] in 0..255"),
    "ignore_label": (
        lambda value: all(map(_is_byte, _as_list(value))),
        "be one value in 0..255 or a list of values",
    ),
    "values": (lambda value: _is_set(value, _is_byte), "list different mask values in 0..255"),
}


def _disagreements(content: dict) -> list[str]:
    """Problems between keys that are valid on their own."""
    problems = []
    lengths = {key: len(content[key]) for key in ("classes", "colors", "values") if key in content}
    if len(set(lengths.values())) > 1:
        problems.append(
            "must be of one length: " + ", ".join(f'"{key}" has {n}' for key, n in lengths.items())
        )
    colors, ignored_colors = content.get("colors", []), content.get("ignore_colors", [])
    if ignored_colors and not colors:
        problems.append('"ignore_colors" requires "colors", those of the classes')
    twice = [color for color in ignored_colors if color in colors]
    if twice:
        problems.append(f'"ignore_colors" {twice} are also in "colors"')
    values = content.get("values", list(range(len(content.get("classes", colors)))))
    both = set(_as_list(content.get("ignore_label", []))) & set(values)
    if both:
        problems.append(
            f'"ignore_label" {sorted(both)} is also the value of a class; list the values of the '
            'classes in "values"'
        )
    return problems


def needs_scan(settings: Settings) -> bool:
    """Whether the classes must be inferred from the label maps."""
    return settings.classes is None and settings.values is None and not settings.colors


def settled(
    settings: Settings,
    values: tuple[int, ...] | None = None,
    palette: tuple[tuple[int, int, int], ...] = (),
) -> tuple[DatasetInfo, LabelCode]:
    """Returns classes and label code of settings, with defaults for missing keys."""
    values = settings.values or values or tuple(range(len(settings.classes or settings.colors)))
    classes = settings.classes or tuple(f"class_{index}" for index in range(len(values)))
    colors = settings.colors or ()
    if not colors and max(values) < len(palette):
        colors = tuple(palette[value] for value in values)
    return DatasetInfo(classes, colors), LabelCode(values, _ignored(settings, values))


def _ignored(settings: Settings, values: tuple[int, ...]) -> tuple[int, ...]:
    """The ignored mask values, given those of the classes."""
    default = () if IGNORE_LABEL in values else (IGNORE_LABEL,)
    ignored = default if settings.ignored is None else settings.ignored
    if settings.ignored_colors and not ignored:  # which need a value too
        return (min(set(range(256)) - set(values)),)
    return ignored


def color_code(settings: Settings) -> ColorCode | None:
    """Returns the mask values of the colours in RGB label maps; None if none are listed."""
    if not settings.colors:
        return None
    values = settings.values or tuple(range(len(settings.colors)))
    ignored = _ignored(settings, values)[:1] * len(settings.ignored_colors)
    return ColorCode((*settings.colors, *settings.ignored_colors), (*values, *ignored))


def infer_values(
    maps: Sequence[np.ndarray], ignored: tuple[int, ...] | None
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Infers the mask values of the classes from those that occur; returns them and warnings.

    Args:
        maps: Pixels of each of the 256 values in each label map.
        ignored: The values that dataset.json ignores; None if it has none: then 255 is ignored
            unless the masks contain only 0 and 255.

    Raises:
        ValueError: If the values do not look like labels, or 255 does not look like an ignored
            border. The message has the figures and shows what to write.
    """
    counts = sum(maps)
    found = _present(counts)
    skipped = (IGNORE_LABEL,) if ignored is None else ignored
    used = [value for value in found if value not in skipped]
    values = tuple(value for value in range(max(used, default=0) + 1) if value not in skipped)
    notes: tuple[str, ...] = ()
    if (found if ignored is None else used) == [0, IGNORE_LABEL]:
        values = (0, IGNORE_LABEL)
    elif len(used) < 2:
        why = "only one value is left for the classes" if used else "all pixels are ignored"
        raise _unclear(counts, ignored, why)
    # If half of the labels are absent, the values are codes (0, 128), not class numbers.
    elif len(values) > MAX_INFERRED_CLASSES or 2 * len(used) < len(values):
        raise _unclear(counts, ignored, "the values are not the numbers 0, 1, 2, ...")
    elif ignored is None:
        notes = check_undeclared_ignored(maps)
    if values[0] == 0 and used[0] != 0:
        notes += (
            "no label map holds 0, so that class 0 has no pixels; if the labels count from 1, "
            f'write "values": {list(values[1:5])}{" and so on" * (len(values) > 5)} into '
            "dataset.json",
        )
    return values, notes + tuple(_rare(maps, counts, values))


def ignores_by_default(settings: Settings, code: LabelCode) -> bool:
    """Whether 255 is ignored by default although dataset.json lists the classes."""
    declared = settings.ignored is not None or settings.ignored_colors or needs_scan(settings)
    return not declared and IGNORE_LABEL not in code.values


def check_default_ignored(counts: np.ndarray) -> tuple[str, ...]:
    """Checks that 255, ignored by default beside the classes in dataset.json, is not a class.

    Args:
        counts: Pixels of each of the 256 values in all label maps.

    Returns:
        Warnings.

    Raises:
        ValueError: If only one class occurs beside 255, apart from stray pixels. The message has
            the figures and shows what to write.
    """
    ignored, total, smaller = _beside_ignored(counts)
    if smaller < STRAY * ignored:
        most = int(np.delete(counts, IGNORE_LABEL).argmax())
        raise ValueError(
            f"255 is ignored and holds {_share(ignored, total)} of all pixels, but all classes "
            f"except {most} hold {smaller} pixels together ({_share(smaller, total)}). Write "
            f'"values": [{most}, 255] into dataset.json if 255 is a class, or "ignore_label": 255 '
            "if it is ignored"
        )
    return _wide_border(ignored, total)


def check_undeclared_ignored(maps: Sequence[np.ndarray]) -> tuple[str, ...]:
    """Checks that 255, which dataset.json does not mention, looks like an ignored border.

    Args:
        maps: Pixels of each of the 256 values in each label map.

    Returns:
        Warnings.

    Raises:
        ValueError: If 255 may be a class. The message has the figures and both interpretations.
    """
    counts = sum(maps)
    ignored, total, smaller = _beside_ignored(counts)
    # A border lies between two classes; foreground saved as 255 has one class around it.
    lone = sum(m[IGNORE_LABEL] for m in maps if np.count_nonzero(np.delete(m, IGNORE_LABEL)) == 1)
    share, why = _share(ignored, total), None
    if 2 * ignored > total:
        why = f"255 holds {share} of all pixels"
    # Inside PASCAL VOC's border of 5 pixels, discs 10 pixels wide still have 12 % of its pixels.
    elif 10 * smaller < ignored:
        why = (
            f"255 holds {ignored} pixels ({share}), but all classes except the most frequent one "
            f"hold {smaller} together ({_share(smaller, total)})"
        )
    elif 2 * lone > ignored:
        why = (
            f"{_share(lone, ignored)} of the pixels of 255 are in label maps with one class only "
            "(if a class is 255 in some files and another value in others, save it with one value)"
        )
    if why:
        raise _unclear(counts, None, why)
    return _wide_border(ignored, total)


def _beside_ignored(counts: np.ndarray) -> tuple[int, int, int]:
    """The pixels of 255, of all values, and of all classes but the largest."""
    labels = np.delete(counts, IGNORE_LABEL)
    return int(counts[IGNORE_LABEL]), int(counts.sum()), int(labels.sum() - labels.max())


def _wide_border(ignored: int, total: int) -> tuple[str, ...]:
    if 5 * ignored <= total:
        return ()
    return (
        f"255 is ignored and holds {_share(ignored, total)} of all pixels; write "
        '"ignore_label": 255 into dataset.json if that is right',
    )


def _rare(maps: Sequence[np.ndarray], counts: np.ndarray, values: Sequence[int]) -> Iterator[str]:
    for value in values:
        if 0 < counts[value] < RARE * counts.sum() and sum(m[value] > 0 for m in maps) == 1:
            yield (
                f"value {value} counts as a class, but only one label map holds it, on "
                f"{counts[value]} pixels ({_share(counts[value], counts.sum())} of all)"
            )


def _present(counts: np.ndarray) -> list[int]:
    return np.flatnonzero(counts).tolist()


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2%}" if part == 0 or part / whole >= 1e-4 else "under 0.01%"


def _unclear(counts: np.ndarray, ignored: tuple[int, ...] | None, why: str) -> ValueError:
    """The error for ambiguous values: their counts, and a dataset.json for each interpretation."""
    found = _present(counts)
    figures = ", ".join(
        f"{value} ({counts[value]} pixels, {_share(counts[value], counts.sum())})"
        for value in found[:LISTED_VALUES]
    )
    more = f" and {len(found) - LISTED_VALUES} other values" * (len(found) > LISTED_VALUES)
    left = [value for value in found if value not in (ignored or ())]
    if len(left) < 2:
        left, ignored = found, None
    others = [value for value in left if value != IGNORE_LABEL]
    between = others[1:] if others[:1] == [0] else []
    open_255 = ignored is None and len(left) > len(others) > 1
    if open_255 and between and 10 * counts[between].sum() < counts[IGNORE_LABEL]:
        shown = _example([0, IGNORE_LABEL], between)
    else:
        shown = _example(left, ignored)
    if open_255:
        advice = f"{shown} if 255 is a class, or {_example(others, [255])} if 255 is ignored"
        if len(between) > 1:
            advice += (
                "; if these are two classes with soft edges, save the masks with the values 0 and "
                "255 alone"
            )
    else:
        advice = (
            f'such as {shown}, and in "ignore_label" those that are none; or the full list of '
            '"classes" if the values are their numbers'
        )
    return ValueError(
        f"{why}: the label maps hold the values {figures}{more}. Write a dataset.json "
        f"that says which values are classes, {advice}"
    )


def _example(values: Sequence[int], ignored: Sequence[int] | None) -> str:
    """A dataset.json that lists values as classes, at least two, shortened to four."""
    if len(values) < 2:
        values = sorted({0, *values}) if any(values) else [0, 1]
    shown = values if len(values) <= 4 else [*values[:3], values[-1]]
    content: dict[str, list] = {
        "classes": [f"class_{index}" for index in range(len(shown))],
        "values": list(shown),
    }
    if ignored:
        content["ignore_label"] = list(ignored[:LISTED_VALUES])
    shortened_lists = len(values) > 4 or len(ignored or ()) > LISTED_VALUES
    return json.dumps(content) + " (and so on for the other values)" * shortened_lists
