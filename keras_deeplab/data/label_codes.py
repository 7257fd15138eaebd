from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_deeplab.data.label_maps import ColorCode
from keras_deeplab.data.source import IGNORE_LABEL, MAX_CLASSES, DatasetInfo

KEYS = ("classes", "colors", "ignore_colors", "ignore_label", "values")
# ADE20K, the largest label set in wide use without a list of values, has 150 and "other".
MAX_INFERRED_CLASSES = 151


@dataclass(frozen=True)
class Settings:
    """The contents of a dataset.json; None where it says nothing."""

    classes: tuple[str, ...] | None = None
    colors: tuple[tuple[int, int, int], ...] | None = None
    ignored: tuple[int, ...] | None = None
    values: tuple[int, ...] | None = None
    ignored_colors: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True)
class LabelCode:
    """What the values in a mask stand for: `values[k]` is label k, `ignored` ones become 255."""

    values: tuple[int, ...]
    ignored: tuple[int, ...] = (IGNORE_LABEL,)

    @property
    def known(self) -> np.ndarray:
        """For each of the 256 mask values whether it has a meaning."""
        return np.isin(np.arange(256), self.values + self.ignored)

    @property
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


def read_settings(path: Path) -> Settings:
    """Reads a dataset.json; raises one ValueError that lists all that is wrong with it."""
    if not path.exists():
        return Settings()
    if not path.is_file():
        raise ValueError("not a regular file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(f"not readable as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"must be an object with the keys {KEYS}, is a {type(content).__name__}")
    problems = [f"unknown key {key!r} (known: {', '.join(KEYS)})" for key in content.keys() - KEYS]
    problems += _shape_problems(content) or _agreement_problems(content)
    if problems:
        raise ValueError("; ".join(problems))
    ignored = content.get("ignore_label", None)
    return Settings(
        classes=_tuple(content.get("classes")),
        colors=content.get("colors") and tuple(map(tuple, content["colors"])),
        ignored=_tuple(ignored if isinstance(ignored, list) or ignored is None else [ignored]),
        values=_tuple(content.get("values")),
        ignored_colors=tuple(map(tuple, content.get("ignore_colors", ()))),
    )


def _tuple(content: list | None) -> tuple | None:
    return None if content is None else tuple(content)


def _is_byte(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255


def _shape_problems(content: dict) -> list[str]:
    """What is wrong with each key by itself."""
    problems = []
    classes = content.get("classes", ["-"])
    if not (
        isinstance(classes, list)
        and 1 <= len(classes) <= MAX_CLASSES
        and all(isinstance(name, str) and name for name in classes)
        and len(set(classes)) == len(classes)
    ):
        problems.append(f'"classes" must list 1 to {MAX_CLASSES} different names, is {classes!r}')
    for key in ("colors", "ignore_colors"):
        colors = content.get(key, [])
        if not isinstance(colors, list) or not all(
            isinstance(color, list) and len(color) == 3 and all(map(_is_byte, color))
            for color in colors
        ):
            problems.append(f'"{key}" must list [red, green, blue] in 0..255, is {colors!r}')
    ignored = content.get("ignore_label", 255)
    if not all(map(_is_byte, ignored if isinstance(ignored, list) else [ignored])):
        problems.append(f'"ignore_label" must be one value in 0..255 or a list, is {ignored!r}')
    values = content.get("values", [0])
    if not (
        isinstance(values, list)
        and 1 <= len(values) <= MAX_CLASSES
        and all(map(_is_byte, values))
        and len(set(values)) == len(values)
    ):
        problems.append(f'"values" must list different mask values in 0..255, is {values!r}')
    return problems


def _agreement_problems(content: dict) -> list[str]:
    """What is wrong between keys that are right by themselves."""
    problems = []
    lengths = {key: len(content[key]) for key in ("classes", "colors", "values") if key in content}
    if len(set(lengths.values())) > 1:
        problems.append(
            "must be of one length: " + ", ".join(f'"{key}" has {n}' for key, n in lengths.items())
        )
    colors, ignored_colors = content.get("colors", []), content.get("ignore_colors", [])
    if ignored_colors and not colors:
        problems.append('"ignore_colors" needs "colors", those of the classes')
    twice = [color for color in ignored_colors if color in colors]
    if twice:
        problems.append(f'"ignore_colors" {twice} are also in "colors"')
    ignored = content.get("ignore_label", [])
    values = content.get("values", list(range(len(content.get("classes", [])))))
    both = set(ignored if isinstance(ignored, list) else [ignored]) & set(values)
    if both:
        problems.append(
            f'"ignore_label" {sorted(both)} is also the value of a class; list the values of the '
            'classes in "values"'
        )
    return problems


def needs_scan(settings: Settings) -> bool:
    """Whether the number of classes must be found in the label maps."""
    return settings.classes is None and settings.values is None and not settings.colors


def settled(
    settings: Settings,
    values: tuple[int, ...] | None = None,
    palette: tuple[tuple[int, int, int], ...] = (),
) -> tuple[DatasetInfo, LabelCode]:
    """Returns classes and label code of settings, with the defaults for what they leave open."""
    count = len(settings.classes or settings.values or values or settings.colors)
    values = settings.values or values or tuple(range(count))
    classes = settings.classes or tuple(f"class_{index}" for index in range(count))
    if not settings.colors and palette and max(values) < len(palette):
        settings_colors = tuple(palette[value] for value in values)
    else:
        settings_colors = settings.colors or ()
    return DatasetInfo(classes, settings_colors), LabelCode(values, _ignored(settings, values))


def _ignored(settings: Settings, values: tuple[int, ...]) -> tuple[int, ...]:
    """The mask values that are ignored, given those of the classes."""
    ignored = (IGNORE_LABEL,) if settings.ignored is None else settings.ignored
    ignored = tuple(value for value in ignored if value not in values)
    if settings.ignored_colors and not ignored:  # an ignored colour stands for some value too
        return (min(set(range(256)) - set(values)),)
    return ignored


def color_code(settings: Settings) -> ColorCode | None:
    """Returns what the colours of RGB label maps stand for; None where no colours are listed."""
    if not settings.colors:
        return None
    values = settings.values or tuple(range(len(settings.colors)))
    ignored = _ignored(settings, values)[:1] * len(settings.ignored_colors)
    return ColorCode((*settings.colors, *settings.ignored_colors), (*values, *ignored))


def infer_values(present: np.ndarray, ignored: tuple[int, ...] | None) -> tuple[int, ...]:
    """Returns the mask values of the classes, judged by the values that occur.

    Args:
        present: The different values in all label maps, ascending.
        ignored: The values that dataset.json ignores; None stands for 255.

    Raises:
        ValueError: The values do not look like labels; the message shows what to write.
    """
    found = tuple(int(value) for value in present)
    if ignored is None and found == (0, IGNORE_LABEL):
        return found
    used = tuple(v for v in found if v not in ((IGNORE_LABEL,) if ignored is None else ignored))
    count = max(used, default=0) + 1
    # Half of the labels absent speaks for codes (0, 128; colours), not for numbered classes.
    if 2 <= count <= MAX_INFERRED_CLASSES and 2 * len(used) >= count:
        return tuple(range(count))
    listed = ", ".join(map(str, found[:20])) + (", ..." if len(found) > 20 else "")
    example = {
        "classes": [f"class_{index}" for index in range(len(used[:4]))],
        "values": list(used[:4]),
    }
    more = " (and so on for the other values)" if len(used) > 4 else ""
    raise ValueError(
        f"the label maps hold {len(found)} values: {listed}. Write a dataset.json that says which "
        f'values are classes, such as {json.dumps(example)}{more}, and in "ignore_label" those '
        'that are none; or the full list of "classes" if the values are their numbers'
    )
