"""The meaning of the values in label maps: from dataset.json, or inferred from their counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

import numpy as np

from keras_deeplab import validation
from keras_deeplab.data.bands import Bands
from keras_deeplab.data.faults import FileFault
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
SHOWN_VALUES = 10


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
    def _known_bytes(self) -> bytes:
        return bytes(np.flatnonzero(self.known).tolist())

    @cached_property
    def table(self) -> np.ndarray:
        """The uint8 label for each of the 256 mask values."""
        table = np.full(256, IGNORE_LABEL, np.uint8)
        table[list(self.values)] = np.arange(len(self.values))
        return table

    def labels(self, values: np.ndarray) -> np.ndarray:
        """Returns the labels of mask values, or raises a FileFault for values without meaning."""
        encoded = bytearray(values)  # NumPy takes several times as long to look up each pixel
        if wrong := set(encoded.translate(None, self._known_bytes)):
            raise FileFault("label value out of range", str(sorted(wrong)), str(self))
        return np.frombuffer(encoded.translate(self.table.tobytes()), np.uint8).reshape(
            values.shape
        )

    def __str__(self) -> str:
        """Returns the expected values, such as `0..10, ignored: 11`."""
        ignored = f", ignored: {_series(self.ignored)}" if self.ignored else ""
        return _series(self.values) + ignored


def _series(numbers: Sequence[int]) -> str:
    if len(numbers) > 2 and tuple(numbers) == tuple(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]}..{numbers[-1]}"
    return ", ".join(map(str, numbers))


@dataclass(frozen=True)
class Settings:
    """The contents of a dataset.json; without any of the first three the classes are inferred."""

    classes: tuple[str, ...] = ()
    values: tuple[int, ...] = ()  # by default 0, 1, 2, ... for the classes or colors
    colors: tuple[Color, ...] = ()
    ignore_colors: tuple[Color, ...] = ()
    ignore_label: tuple[int, ...] | None = None
    channels: int = 3
    range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        values = self.values or tuple(range(len(self.classes or self.colors)))
        object.__setattr__(self, "values", values)

    @property
    def code(self) -> LabelCode:
        """The meaning of the mask values."""
        default = () if IGNORE_LABEL in self.values else (IGNORE_LABEL,)
        ignored = default if self.ignore_label is None else self.ignore_label
        if self.ignore_colors and not ignored:  # which need a value too
            ignored = (min(set(range(256)) - set(self.values)),)
        return LabelCode(self.values, ignored)

    @property
    def color_code(self) -> ColorCode | None:
        """The mask values of the colours in RGB label maps; None if none are listed."""
        if not self.colors:
            return None
        ignored = self.code.ignored[:1] * len(self.ignore_colors)
        return ColorCode(
            (*self.colors, *self.ignore_colors), (*self.values, *ignored), self.code.ignored
        )

    def info(self, palette: Sequence[Color] = ()) -> DatasetInfo:
        """Returns the classes; their colours are by default those of a palette of label maps."""
        colors = self.colors
        if not colors and max(self.values) < len(palette):
            own = tuple(palette[value] for value in self.values)
            # The palette that Pillow makes of grey values would show all classes as black.
            ramp = all(color == (value,) * 3 for value, color in zip(self.values, own, strict=True))
            colors = () if ramp else own
        names = self.classes or tuple(f"class_{index}" for index in range(len(self.values)))
        return DatasetInfo(names, colors, self.channels, self.range)

    @property
    def bands(self) -> Bands:
        """How image files are read."""
        return Bands(self.channels, self.range)


def _is_name(item: Any) -> bool:
    return isinstance(item, str) and bool(item)


def _is_byte(item: Any) -> bool:
    return validation.is_integer(item, 0) and item <= 255


def _is_color(item: Any) -> bool:
    return isinstance(item, list) and len(item) == 3 and all(map(_is_byte, item))


def _is_range(item: Any) -> bool:
    is_pair = isinstance(item, list) and len(item) == 2 and all(map(validation.is_number, item))
    return is_pair and item[0] < item[1]


def _list_of(is_item: Callable[[Any], bool], different: bool = False) -> Callable[[Any], bool]:
    def is_valid(items: Any) -> bool:
        are = isinstance(items, list) and len(items) <= MAX_CLASSES and all(map(is_item, items))
        return are and (not different or 0 < len(items) == len(set(items)))

    return is_valid


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


_UP_TO = f"list up to {MAX_CLASSES}"
# What the value of each key must do.
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "classes": (_list_of(_is_name, different=True), f"{_UP_TO} different names"),
    "values": (_list_of(_is_byte, different=True), f"{_UP_TO} different mask values in 0..255"),
    "colors": (_list_of(_is_color), f"{_UP_TO} [red, green, blue] in 0..255"),
    "ignore_colors": (_list_of(_is_color), f"{_UP_TO} [red, green, blue] in 0..255"),
    "ignore_label": (_list_of(_is_byte), f"{_UP_TO} mask values in 0..255"),
    "channels": (validation.is_integer, "be a positive integer"),
    "range": (_is_range, "be [low, high], the sample values that become 0 and 255"),
}


def read_settings(path: Path) -> Settings:
    """Reads a dataset.json; raises one ValueError that lists all problems."""
    return settings_of(read_json_object(path))


def settings_of(content: Mapping[str, Any]) -> Settings:
    """Returns the content of a dataset.json, or raises one ValueError that lists all problems."""
    lists: dict[str, Any] = {}
    problems = []
    for key, value in content.items():
        given = [value] if key == "ignore_label" and not isinstance(value, list) else value
        if key not in _RULES:
            problems.append(f"unknown key {key!r} (known: {', '.join(_RULES)})")
        elif _RULES[key][0](given):
            lists[key] = _tuples(given)
        else:
            problems.append(f'"{key}" must {_RULES[key][1]}. Received: {shortened(value)}')
    settings = Settings(**lists)
    problems = problems or _disagreements(settings)
    if problems:
        raise ValueError("; ".join(problems))
    return settings


def _disagreements(settings: Settings) -> list[str]:
    """Problems between keys that are valid on their own."""
    problems = []
    lists = (settings.classes, settings.colors, settings.values)
    if len({len(items) for items in lists if items}) > 1:
        problems.append('"classes", "colors" and "values" must have one length')
    if settings.ignore_colors and not settings.colors:
        problems.append('"ignore_colors" requires "colors", those of the classes')
    for key, items, classes in (
        ("ignore_colors", settings.ignore_colors, settings.colors),
        ("ignore_label", settings.ignore_label or (), settings.values),
    ):
        both = sorted(set(items) & set(classes))
        if both:
            problems.append(f'"{key}" {both} are also listed as classes')
    return problems


def infer_values(
    maps: Sequence[np.ndarray], ignored: tuple[int, ...] | None
) -> tuple[tuple[int, ...], list[str]]:
    """Infers the mask values of the classes from those that occur; returns them and warnings.

    `maps` has the pixels of each of the 256 values in each label map. `ignored` has the values that
    dataset.json ignores; with None, 255 is ignored unless the masks hold only 0 and 255. Raises a
    ValueError if the values do not look like labels, or 255 not like an ignored border.
    """
    counts = sum(maps)
    by_default = ignored is None
    ignored = (IGNORE_LABEL,) if by_default else ignored
    found = np.flatnonzero(counts).tolist()
    used = [value for value in found if value not in ignored]
    values = tuple(value for value in range(max(used, default=0) + 1) if value not in ignored)
    why = None
    if (found if by_default else used) == [0, IGNORE_LABEL]:
        values = (0, IGNORE_LABEL)
    elif len(used) < 2:
        why = "fewer than two values are left for the classes"
    # If most of the labels are absent, the values are codes (0, 128), not class numbers.
    elif len(values) > MAX_INFERRED_CLASSES or 2 * len(used) < len(values):
        why = "the values are not the numbers 0, 1, 2 and so on"
    elif by_default and 2 * counts[IGNORE_LABEL] > counts.sum():
        why = f"255 holds {_pixels(counts[IGNORE_LABEL], counts)}"
    elif by_default:
        why = _doubt([counts], values, ignored, FEW_OF_INFERRED)
        why = why or _doubt(maps, values, ignored, FEW_OF_INFERRED)
    if why:
        raise ValueError(f"{why}. {_advice(counts, () if by_default else ignored)}")
    notes = [
        f"value {value} counts as a class, but only one label map holds it, on "
        f"{_pixels(counts[value], counts)}"
        for value in values
        if 0 < counts[value] < RARE * counts.sum() and sum(m[value] > 0 for m in maps) == 1
    ]
    if by_default and IGNORE_LABEL not in values:
        notes += _wide_border(counts)
    if values[0] == 0 and used[0] != 0:
        notes.append(
            "no label map holds 0, so that class 0 has no pixels; if the labels count from 1, "
            f'write "values": {shortened(list(values[1:]))} into dataset.json'
        )
    return values, notes


def check_ignored(counts: np.ndarray, settings: Settings, code: LabelCode) -> list[str]:
    """Checks that ignored values, given the pixels of each value, are not a class; warns.

    Raises a ValueError if only one class occurs beside them. If 255 is ignored by default, stray
    pixels do not count.
    """
    by_default = settings.ignore_label is None and not settings.ignore_colors
    few = FEW_OF_LISTED if by_default else 0
    why = _doubt([counts], code.values, code.ignored, few)
    if why:
        raise ValueError(f"{why}. {_advice(counts, ())}")
    return _wide_border(counts) if by_default and code.ignored else []


def _doubt(
    maps: Sequence[np.ndarray], values: Sequence[int], ignored: Sequence[int], few: float
) -> str | None:
    """Why ignored values may be a class.

    Most of their pixels are in label maps where all classes but one have few pixels beside them.
    """
    classes = np.array([counts[list(values)] for counts in maps])
    hidden = np.array([counts[list(ignored)].sum() for counts in maps])
    rest = classes.sum(1) - classes.max(1)
    doubtful = (hidden > 0) & (classes.max(1) > 0) & (rest <= few * hidden)
    if 2 * hidden[doubtful].sum() <= hidden.sum():
        return None
    total = sum(maps)
    return (
        f"{_pixels(hidden.sum(), total)} are ignored ({_series(ignored)}), most of them where all "
        f"classes but one hold {_pixels(rest[doubtful].sum(), total)} together"
    )


def _wide_border(counts: np.ndarray) -> list[str]:
    if 5 * counts[IGNORE_LABEL] <= counts.sum():
        return []
    return [
        f"255 is ignored and holds {_pixels(counts[IGNORE_LABEL], counts)}; write "
        '"ignore_label": 255 into dataset.json if that is right'
    ]


def _pixels(count: int, counts: np.ndarray) -> str:
    return f"{count} pixel{'' if count == 1 else 's'} ({count / counts.sum():.2%})"


def _advice(counts: np.ndarray, ignored: Sequence[int]) -> str:
    """The values that occur, and a dataset.json that takes all of them as classes."""
    found = np.flatnonzero(counts).tolist()
    figures = [f"{value} ({counts[value]} pixels)" for value in found[:SHOWN_VALUES]]
    figures += ["..."] * (len(found) > SHOWN_VALUES)
    values = [value for value in found if value not in ignored]
    if len(values) < 2:
        values, ignored = found, ()
    if len(values) < 2:
        values = [0, values[0] or 1]
    also = f', "ignore_label": {shortened(list(ignored))}' if ignored else ""
    return (
        f"The label maps hold the values {', '.join(figures)}. Write a dataset.json that lists the "
        f'values of the classes, such as {{"values": {shortened(values)}{also}}}, with those that '
        'are not a class in "ignore_label" instead'
    )
