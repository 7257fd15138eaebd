"""Splits of data sets that come without."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from keras_deeplab.data.faults import DatasetError, FileFault
from keras_deeplab.files import read_json_object, write_json

logger = logging.getLogger(__name__)

FILE = "splits.json"
VALIDATION_SHARE = 0.2
SPLITS = ("train", "val", "test")


def splits_of(names: Iterable[str], root: Path) -> dict[str, list[str]]:
    """Returns the names of each split: those of splits.json, or a fifth of all as validation.

    The choice depends on the names alone, by their hashes, so that it is the same everywhere and
    that names which are added later move no other. It is kept in splits.json, where it can be
    changed; a folder that cannot be written to gets none.
    """
    names, path = sorted(names), root / FILE
    if path.exists():
        return _read(path, names, root)
    ordered = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    count = max(1, round(VALIDATION_SHARE * len(names))) if len(names) > 1 else 0
    splits = {"train": sorted(ordered[count:])}
    if count:
        splits["val"] = sorted(ordered[:count])
    try:
        write_json(path, splits)
    except OSError as error:
        logger.warning("The splits of %s are not kept: %s", root, error)
    else:
        logger.warning("%s has no splits: %s keeps %d images for validation", root, path, count)
    return splits


def _read(path: Path, names: list[str], root: Path) -> dict[str, list[str]]:
    try:
        splits = read_json_object(path)
    except ValueError as error:
        raise _error(root, [f"{FILE} {error}"]) from error
    valid = set(splits) <= set(SPLITS) and all(
        isinstance(part, list) and all(isinstance(name, str) for name in part)
        for part in splits.values()
    )
    if not valid:
        raise _error(root, [f"{FILE} must have lists of names under {', '.join(SPLITS)}"])
    listed = Counter(name for part in splits.values() for name in part)
    there = set(names)
    problems = [f"{name}: listed in {FILE}, not there" for name in listed if name not in there]
    problems += [f"{name}: not listed in {FILE}" for name in names if name not in listed]
    problems += [f"{name}: listed twice in {FILE}" for name, n in listed.items() if n > 1]
    if problems:
        raise _error(root, problems)
    return splits


def _error(root: Path, problems: list[str]) -> DatasetError:
    return DatasetError(str(root), [FileFault("bad splits.json", text) for text in problems])
