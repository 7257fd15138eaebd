"""Lists of classes that annotation tools write beside their label maps."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from keras_deeplab.data.layout import split_named, visible

# The lines of each file, whose order is that of the values where a line has none.
LINES = {
    "labelmap.txt": r"(?P<name>.+):(?P<color>\d+,\d+,\d+):[^:]*:[^:]*",  # CVAT, Datumaro
    "_classes.csv": r"(?P<value>\d+)\s*,\s*(?P<name>.+)",  # Roboflow
    "class_dict.csv": r"(?P<name>.+?)\s*,\s*(?P<color>\d+\s*,\s*\d+\s*,\s*\d+)",  # Kaggle's CamVid
    "label_colors.txt": r"(?P<color>\d+\s+\d+\s+\d+)\s+(?P<name>.+)",  # CVAT's CamVid 1.0
    "class_names.txt": r"(?P<name>.+)",  # labelme2voc, which has "_background_" first
}
TITLES = r"#.*|pixel value\s*,\s*class|\w+\s*,\s*r(ed)?\s*,\s*g(reen)?\s*,\s*b(lue)?"


def read_class_list(root: Path) -> dict[str, Any]:
    """Returns the content of a list of classes in the form of a dataset.json; empty without one.

    The list is in the folder of the data set or in those of its splits. Raises a ValueError if it
    is malformed or if lists differ.
    """
    folders = [root, *(at for at in visible(root) if split_named(at.name) and at.is_dir())]
    found = {}
    for path in (folder / name for name in LINES for folder in folders):
        if path.is_file() and (content := _content(path)):
            found[path.relative_to(root).as_posix()] = content
    contents = list(found.values())
    if any(content != contents[0] for content in contents):
        raise ValueError(f"{', '.join(found)} list different classes")
    return contents[0] if contents else {}


def _content(path: Path) -> dict[str, Any]:
    """The content of a list; empty for a file of this name that another program has written."""
    lines = [line.strip() for line in path.read_bytes().decode("utf-8-sig", "replace").splitlines()]
    lines = [line for line in lines if line and not re.fullmatch(TITLES, line, re.IGNORECASE)]
    rows = {line: re.fullmatch(LINES[path.name], line) for line in lines}
    is_foreign = path.name == "class_names.txt" and lines[:1] != ["_background_"]
    if is_foreign or not any(rows.values()):
        return {}
    wrong = [line for line, row in rows.items() if not row or "\ufffd" in line]
    if wrong:
        raise ValueError(f"{path.name} has lines that do not name a class: {', '.join(wrong)}")
    content: dict[str, Any] = {}
    for row in map(rows.get, lines):
        content.setdefault("classes", []).append(row["name"].strip('"'))
        if value := row.groupdict().get("value"):
            content.setdefault("values", []).append(int(value))
        if color := row.groupdict().get("color"):
            content.setdefault("colors", []).append(
                [int(part) for part in re.findall(r"\d+", color)]
            )
    return content
