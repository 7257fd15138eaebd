"""The folder of a training run: its files, and whether it is new, unfinished or finished."""

from __future__ import annotations

import csv
import json
import logging
import math
import shutil
import zipfile
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from keras_deeplab import validation
from keras_deeplab.data.layout import visible
from keras_deeplab.files import (
    check_unpacked,
    check_writable,
    digest,
    read_json,
    write_json,
    write_text,
)
from keras_deeplab.folder_lock import FolderLock

logger = logging.getLogger(__name__)

MONITOR = "val_mean_iou"
# Names in run.json: where the data is, and a digest of what the audit found in the label maps.
DATA, LABELS = "data", "data_labels"
RESTORE = "Restore it, or choose another folder."


class Record(NamedTuple):
    """The state of a run when a model was saved, stored as the comment of the `.keras` archive.

    Inside the model's own file it cannot be lost or belong to another model. `run` is the hash of
    the run's arguments, `epochs` counts the completed ones, `score` is the model's validation score
    and `best` the best so far, if there was a validation.
    """

    run: str
    epochs: int
    score: float | None
    best: float | None

    def write(self, path: Path) -> None:
        """Writes the record into the file of a model."""
        with zipfile.ZipFile(path, "a") as archive:
            archive.comment = json.dumps(self._asdict()).encode()

    @classmethod
    def read(cls, path: Path) -> Record:
        """Reads the record from the file of a model, and checks the whole file.

        Raises:
            ValueError: If the file is damaged, or was written by something else.
        """
        is_whole = False
        try:
            with zipfile.ZipFile(path) as archive:
                check_unpacked(archive, path.stat().st_size)  # Keras compresses nothing
                is_whole = archive.testzip() is None
                record = cls(**json.loads(archive.comment))
            scores = [value for value in (record.score, record.best) if value is not None]
            valid = isinstance(record.run, str) and validation.is_integer(record.epochs)
            if is_whole and valid and all(map(validation.is_number, scores)):
                return record
        except Exception as error:  # zipfile and json have many, depending on the damaged byte
            if isinstance(error, OSError) and error.filename is not None:  # it may not be read
                raise
        message = f"{path} is damaged, or was not written by a run of this version. {RESTORE}"
        raise ValueError(message + _as_weights(path) * is_whole)


class RunFolder:
    """The files of a run.

    `run.json` holds the arguments as soon as a run begins, `metrics.json` the scores when it is
    finished; in between, the same arguments resume it from `last.keras`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.arguments = path / "run.json"
        self.best_model = path / "model.keras"
        self.last_model = path / "last.keras"
        self.metrics = path / "metrics.json"
        self.trained = path / ".trained"  # while the trained model is scored and exported
        self.history = path / "history.csv"
        self.epochs = path / "epochs.csv"
        self.report = path / "report.html"
        self.dataset = path / "dataset.json"
        self.picture = path / "predictions.png"
        self.saved_model = path / "saved_model"
        self.curves = path / "tensorboard"
        self.lock = FolderLock(path, "run.lock")
        self.run = ""

    def begin(self, arguments: dict[str, Any]) -> int:
        """Locks the folder for a new run or an unfinished one; returns the completed epochs.

        Raises:
            ValueError: If the folder holds a finished run, a run with other arguments or one in
                another process, files that are not a run's, or too few of an unfinished run's.
        """
        self.check_unfinished()  # so that a refused folder is left as it is
        self.lock.acquire()
        self.check_unfinished()  # another process may have finished its run in between
        self.run = digest(_without({DATA, LABELS}, arguments))
        epochs = self._epochs_done(arguments)
        write_json(self.arguments, arguments)
        for file in self.path.glob(".[0-9]*-*"):  # of an interrupted save
            file.unlink()
        for export in self.path.glob(f".{self.saved_model.name}.*"):
            shutil.rmtree(export)
        self._trim_history(epochs)
        return epochs

    def check_unfinished(self) -> None:
        """Raises a ValueError for the folder of a finished run or of other files.

        An OSError if nothing can be written there.
        """
        if self.path.is_file():
            raise ValueError(f"{self.path} is a file. Choose another folder.")
        if self.metrics.exists():
            raise ValueError(
                f"{self.path} holds a finished run. Choose another folder, or delete it; to train "
                f"on from it, give its {self.best_model.name} as `weights`."
            )
        present = set(visible(self.path)) - {self.lock.file} if self.path.exists() else set()
        if present and self.arguments not in present:
            raise ValueError(f"{self.path} holds files, but no run.json. Choose another folder.")
        # Of what would be made first, so that no folder is made for a run that is refused later.
        paths = (self.arguments, *self.arguments.parents)
        check_writable(next((path for path in paths if path.parent.exists()), self.arguments))

    def _epochs_done(self, arguments: dict[str, Any]) -> int:
        """The completed epochs of a run with these arguments; warns of a lost best model."""
        paths = [path for path in (self.last_model, self.best_model) if path.exists()]
        rows = max(0, len(_rows(self.history)) - 1)
        if not paths and rows <= 1:  # nothing was trained yet
            return 0
        before = read_json(self.arguments, RESTORE)
        labels = arguments.get(LABELS)
        relabelled = before.get(LABELS, labels) != labels
        # Of data that is elsewhere the label maps tell that it is the same.
        free = {LABELS} if relabelled else {LABELS, DATA}
        if changes := differences(_without(free, before), _without(free, arguments)):
            raise ValueError(
                f"{self.path} holds an unfinished run with other arguments "
                f"({changes}). Choose another folder, or delete it."
            )
        if before.get(DATA) != arguments.get(DATA):
            logger.warning(
                "The run %s began with the data %s and resumes with %s.",
                *(self.path, before.get(DATA), arguments.get(DATA)),
            )
        if relabelled:
            logger.warning(
                "The label maps are not those with which the run %s began: scores of epochs before "
                "and after cannot be compared.",
                self.path,
            )
        records, faults = {}, {}
        for path in paths:
            try:
                records[path] = Record.read(path)
            except ValueError as error:
                faults[path] = error
        as_weights = _as_weights(self.best_model) * (self.best_model in records)
        if faults and self.last_model not in records:
            fault = next(iter(faults.values()))  # of the last model, where it is not missing
            raise ValueError(f"{fault}{as_weights}")
        for path, record in records.items():
            if record.run != self.run:
                raise ValueError(
                    f"{path} belongs to a different run than {self.arguments}. {RESTORE}"
                )
        last, best = records.get(self.last_model), records.get(self.best_model)
        if last is None:
            trained = max(best.epochs if best else 0, rows)
            if trained > 1:  # in the first epoch, this run was killed before it stored the model
                raise ValueError(
                    f"{self.last_model} is missing, with the state after epoch {trained}. {RESTORE}"
                    f"{as_weights}"
                )
            return 0
        if faults:  # a file of the user may have its name
            numbered = (self.path / f"model-damaged-{number}.keras" for number in count(1))
            aside = next(path for path in numbered if not path.exists())
            self.best_model.replace(aside)
            logger.warning(
                "%s is damaged, or was not written by a run of this version; it is now %s.",
                *(self.best_model, aside.name),
            )
        if last.best is not None and (best is None or best.score is None or best.score < last.best):
            logger.warning(
                "%s is not the best model, with a mean IoU of %.3f: it is missing or was replaced. "
                "The next better model will be stored there.",
                *(self.best_model, last.best),
            )
        return last.epochs

    def _trim_history(self, epochs: int) -> None:
        """Cuts the history to the completed epochs, and logs if it lacks some of them."""
        _trim(self.epochs, epochs)
        kept = _trim(self.history, epochs)
        if kept < epochs:
            logger.warning(
                "%s lacks %d of the %d completed epochs. The next row will be epoch %d.",
                *(self.history, epochs - kept, epochs, epochs + 1),
            )

    def best_score(self) -> float:
        """The validation score of the best model so far; -infinity if there is none."""
        score = Record.read(self.best_model).score if self.best_model.exists() else None
        return -math.inf if score is None else score


def _as_weights(path: Path) -> str:
    return f" A new run can start from {path}: pass it as `weights`."


def _without(free: set[str], arguments: dict[str, Any]) -> dict[str, Any]:
    """What must be the same to resume."""
    return {key: value for key, value in arguments.items() if key not in free}


def _rows(path: Path) -> dict[str, str]:
    """The whole lines of a table by their first value: "epoch", and epochs counted from 0.

    A full disk or a process that was killed leaves a part of one.
    """
    if not path.exists():
        return {}
    *lines, _ = path.read_text(encoding="utf-8-sig", errors="replace").split("\n")
    try:
        cells = [next(csv.reader([line]), []) for line in lines]
    except csv.Error:
        return {}
    if not cells or cells[0][:1] != ["epoch"]:
        return {}
    pairs = zip(cells, lines, strict=True)
    return {row[0]: line for row, line in pairs if len(row) == len(cells[0])}


def _trim(path: Path, epochs: int) -> int:
    """Cuts a table to the completed epochs; returns how many of them it has."""
    rows = _rows(path)
    kept = [rows[epoch] for epoch in map(str, range(epochs)) if epoch in rows]
    if path.exists():
        lines = [rows["epoch"], *kept] if kept else []
        end = "\r\n" if b"\r\n" in path.read_bytes() else "\n"  # as Keras' CSVLogger
        write_text(path, "".join(f"{line}{end}" for line in lines))
    return len(kept)


def next_free(path: Path, resumes: bool = True) -> Path:
    """Returns the path, with a number appended if it is taken.

    A folder is taken by a finished run, or without `resumes` by any files.
    """

    def is_taken(folder: Path) -> bool:
        if resumes:
            return RunFolder(folder).metrics.exists()
        return folder.exists() and any(folder.iterdir())

    candidate, number = path, 1
    while is_taken(candidate):
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Names the arguments that differ, with both values; empty if they are equal."""
    before, now = flat(before), flat(now)
    return "; ".join(
        f"{key} was {before.get(key)!r}, is {now.get(key)!r}"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    )


def flat(arguments: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested arguments under dotted names, such as `recipe.learning_rate`."""
    found = {}
    for key, value in arguments.items():
        inner = flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        found.update(inner)
    return found
