"""Splits of data sets that come without."""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from keras_deeplab.data.faults import DatasetError, FileFault
from keras_deeplab.data.layout import SPLITS, is_utf8, split_named
from keras_deeplab.files import read_json_object, write_json
from keras_deeplab.names import first_few

logger = logging.getLogger(__name__)

VALIDATION_SHARE = 0.2
LIKE_SPLITS = r"(train|val|test)(ing|id|idation)?[\W_]?\d+"


def by_folders(names: Iterable[str], root: Path) -> dict[str, list[str]]:
    """Returns the names of each split: of folders named like splits, and of `splits_of`.

    Raises a DatasetError for other folders beside these, and for names such as `train1` and `val1`,
    unless a splits.json is there.
    """
    split_of = {name: folder_split(name) for name in names}
    outer = {name: split_named(name.partition("/")[0]) for name in split_of if "/" in name}
    if not any(outer.values()) and len(set(split_of.values()) - {None}) < 2:
        split_of = dict.fromkeys(split_of)  # such as one folder `test` among others, deep inside
    rest = (name.rpartition("/")[0] for name, split in split_of.items() if split is None)
    others = Counter(folder.split("/")[0] or "." for folder in rest)
    likely = {match[1] for folder in others if (match := re.fullmatch(LIKE_SPLITS, folder.lower()))}
    are_splits = any(split_of.values()) or len(likely) > 1
    if others and are_splits and not (root / "splits.json").exists():
        found = [f"{folder} holds {count} images" for folder, count in sorted(others.items())]
        raise DatasetError(
            str(root), [FileFault("folder beside those of splits", text) for text in found]
        )
    return grouped(split_of, root)


def folder_split(name: str) -> str | None:
    """Returns the split that a folder in a name stands for, the first of several."""
    return next(filter(None, map(split_named, name.split("/")[:-1])), None)


def grouped(
    split_of: Mapping[str, str | None], root: Path, file: str = "splits.json"
) -> dict[str, list[str]]:
    """Returns the names of each split: those given, and those of `splits_of` for other names."""
    given = {name: split for name, split in split_of.items() if split}
    found = splits_of(split_of.keys() - given, root, file, given) if given != split_of else {}
    split_of = given | {name: split for split, part in found.items() for name in part}
    names = sorted(split_of)
    splits = {split: [name for name in names if split_of[name] == split] for split in SPLITS}
    return {split: part for split, part in splits.items() if part} or {"train": []}


def splits_of(
    names: Iterable[str], root: Path, file: str = "splits.json", given: Iterable[str] = ()
) -> dict[str, list[str]]:
    """Returns the names of each split: those of a file, or a fifth of all as validation.

    The choice depends on the names alone, by their hashes. It is kept in the file, where it can
    be changed; names that are added later are trained on. Those of missing images stay in it, so
    that images which come back keep their split. Names of `given` may be in it too, without effect.
    A folder that cannot be written to gets no file.
    """
    names, path = sorted(names), root / file
    faults = [FileFault("file name not UTF-8", name) for name in names if not is_utf8(name)]
    if faults:
        raise DatasetError(str(root), faults)
    splits = _read(path, set(given)) if path.exists() else {}
    listed = {name for part in splits.values() for name in part}
    added = [name for name in names if name not in listed]
    lost = sorted(listed.difference(names))
    if added and lost:  # perhaps names were changed
        raise _error(path, [f"{name}: listed, not there" for name in lost])
    if lost:
        logger.warning(
            "%d images that %s lists are not there: %s", len(lost), path, first_few(lost)
        )
        listed.difference_update(lost)
        return {split: [n for n in part if n in listed] for split, part in splits.items()}
    if not added:
        return splits or {"train": names}
    if len(names) < 2 and not listed:
        return {"train": names}
    if listed:
        splits["train"] = sorted([*splits.get("train", ()), *added])
        text = f"{len(added)} images that {path} did not list are trained on"
    else:
        added.sort(key=lambda name: hashlib.sha256(name.encode()).digest())
        count = max(1, round(VALIDATION_SHARE * len(names)))
        splits = {"train": sorted(added[count:]), "val": sorted(added[:count])}
        text = f"{root} has no splits: {path} keeps {count} images for validation"
    try:
        write_json(path, splits)
    except OSError as error:
        text = f"The splits of {root} are not kept: {error}"
    logger.warning("%s", text)
    return splits


def _read(path: Path, given: set[str]) -> dict[str, list[str]]:
    try:
        splits = read_json_object(path)
    except ValueError as error:
        raise _error(path, [str(error)]) from error
    valid = set(splits) <= set(SPLITS) and all(
        isinstance(part, list) and all(isinstance(name, str) for name in part)
        for part in splits.values()
    )
    if not valid:
        raise _error(path, [f"it must have lists of names under {', '.join(SPLITS)}"])
    listed = Counter(name for part in splits.values() for name in part)
    problems = [f"{name}: listed twice" for name, n in listed.items() if n > 1]
    if problems:
        raise _error(path, problems)
    return {split: [name for name in part if name not in given] for split, part in splits.items()}


def _error(path: Path, problems: list[str]) -> DatasetError:
    faults = [FileFault("bad splits.json", f"{path.name}: {text}") for text in problems]
    return DatasetError(str(path.parent), faults)
