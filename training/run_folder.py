"""The folder of a training run: what it holds, and whether it is new, unfinished or done."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import h5py

from training.files import write_json, written_aside

MONITOR = "val_mean_iou"


class RunFolder:
    """Paths of a run's files.

    `run.json` holds the arguments as soon as a run begins, `metrics.json` the scores when it is
    done; in between, the same arguments go on with it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.arguments = path / "run.json"
        self.backups = path / "backup"
        self.best_model = path / "model.keras"
        self.last_model = path / "last.keras"
        self.metrics = path / "metrics.json"
        self.history = path / "history.csv"
        self.dataset = path / "dataset.json"
        self.picture = path / "predictions.png"
        self.saved_model = path / "saved_model"
        self.curves = path / "tensorboard"

    def backup(self, stage: int) -> Path:
        """Where Keras' BackupAndRestore keeps the state of a stage, counted from 0."""
        return self.backups / str(stage)

    def end_of_stage(self, stage: int) -> Path:
        """The model after the last epoch of a stage that another one follows."""
        return self.backups / f"{stage}.keras"

    def begin(self, arguments: dict[str, Any]) -> int:
        """Starts a run, or finds an unfinished one with the same arguments.

        Returns:
            The epochs that an earlier run has done.

        Raises:
            ValueError: If the folder holds a finished run, a run with other arguments, or files
                that are not a run's.
        """
        if self.metrics.exists():
            raise ValueError(
                f"{self.path} holds a finished run: choose another --output, or delete it."
            )
        if not self.arguments.exists():
            if self.path.exists() and any(self.path.iterdir()):
                raise ValueError(f"{self.path} holds files, but no run: choose another --output.")
        elif self.last_model.exists() or self.backups.exists():
            self._check_same(arguments)
        # Otherwise nothing was trained yet, and nothing is lost by starting again.
        write_json(self.arguments, arguments)
        self._remove_left_overs()
        return self._trim_history()

    def done(self) -> None:
        """Removes what only an unfinished run needs."""
        shutil.rmtree(self.backups, ignore_errors=True)

    def _check_same(self, arguments: dict[str, Any]) -> None:
        before = json.loads(self.arguments.read_text())
        differences = [
            f"{key} was {before.get(key)!r}, is {arguments.get(key)!r}"
            for key in sorted({*before, *arguments})
            if before.get(key) != arguments.get(key)
        ]
        if differences:
            raise ValueError(
                f"{self.path} holds an unfinished run with other arguments "
                f"({'; '.join(differences)}): choose another --output, or delete it."
            )

    def _remove_left_overs(self) -> None:
        """Removes what a save or an export that was cut off left behind."""
        for file in self.path.glob(".[0-9]*-*"):
            file.unlink()
        for export in self.path.glob(f".{self.saved_model.name}.*"):
            shutil.rmtree(export)

    def _epochs_in_backup(self) -> int:
        """The epochs that the last stage's backup holds, whole or from the epoch before."""
        found = sorted(self.backups.glob("[0-9]"), key=lambda path: int(path.name), reverse=True)
        return next((epochs for path in found if (epochs := _restored(path)) is not None), 0)

    def _trim_history(self) -> int:
        """Cuts the history to the epochs that the backup holds, and returns their number."""
        epochs = self._epochs_in_backup()
        if self.history.exists():
            lines = self.history.read_text().splitlines(keepends=True)
            with written_aside(self.history) as aside:
                aside.write_text("".join(lines[: epochs + 1] if epochs else []))
        return epochs

    def best_score(self) -> float:
        """The best validation score so far, -infinity for none."""
        if not self.history.exists() or not self.best_model.exists():
            return -math.inf
        with self.history.open() as file:
            found = [row.get(MONITOR) for row in csv.DictReader(file)]
        scores = [float(score) for score in found if score not in (None, "", "NA")]
        return max((score for score in scores if not math.isnan(score)), default=-math.inf)


def _restored(backup: Path) -> int | None:
    """The epochs in a backup; one that was cut off gives way to the one before it, if any.

    Raises:
        ValueError: If none can be told to be whole, but one may be: it is not thrown away.
    """
    paths = [backup / name for name in ("latest.weights.h5", "training_metadata.json")]
    epochs = _epochs(*paths)
    if epochs is not None:
        return epochs
    earlier = [path.with_name(f"{path.name}.bkp") for path in paths]
    epochs = _epochs(*earlier)
    if epochs is None:
        if _readable(*paths) or _readable(*earlier):
            raise ValueError(
                f"{backup} holds a state of training whose files' times are out of order, as after "
                "a copy that did not keep them: copy the run's folder again with its times "
                "(cp -a), or choose another --output."
            )
        shutil.rmtree(backup, ignore_errors=True)
        return None
    for old, new in zip(earlier, paths, strict=True):
        shutil.copyfile(old, new)
    return epochs


def _epochs(weights: Path, state: Path) -> int | None:
    """The number in a backup, or None if it is not whole: Keras writes the state last."""
    try:
        if state.stat().st_mtime_ns < weights.stat().st_mtime_ns:
            return None
        return json.loads(state.read_text())["epoch"]
    except (OSError, ValueError):
        return None


def _readable(weights: Path, state: Path) -> bool:
    """Whether both files of a backup can be read, whichever of them was written last."""
    try:
        with h5py.File(weights):
            return "epoch" in json.loads(state.read_text())
    except (OSError, ValueError):
        return False


def next_free(path: Path) -> Path:
    """The path, numbered if a finished run lies there."""
    candidate, number = path, 1
    while RunFolder(candidate).metrics.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate
