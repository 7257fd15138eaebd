"""What a run has recorded in its folder, finished or not."""

from __future__ import annotations

import csv
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_deeplab.files import read_json
from keras_deeplab.html_page import line_chart
from keras_deeplab.trainer.run_folder import MONITOR, RESTORE, RunFolder, flat
from keras_deeplab.validation import is_number

Columns = dict[str, list[float]]


@dataclass(frozen=True)
class RunData:
    """The records of a run.

    Attributes:
        path: The folder.
        settings: The arguments of `fit` under dotted names, such as `recipe.learning_rate`.
        history: The columns of `history.csv`; NaN where an epoch has no value.
        epochs: The columns of `epochs.csv`; none of a run of an older version.
        scores: The content of `metrics.json`; None of an unfinished run.
    """

    path: Path
    settings: dict[str, Any]
    history: Columns
    epochs: Columns
    scores: dict[str, Any] | None

    @property
    def num_epochs(self) -> int:
        """The recorded epochs."""
        return len(self.history.get("epoch", ()))

    @property
    def seconds(self) -> float | None:
        """The time of all epochs; None if it was not recorded."""
        return sum(self.epochs["seconds"]) if "seconds" in self.epochs else None

    @property
    def best_score(self) -> float | None:
        """The best mean IoU of the validations during the training."""
        return max(filter(math.isfinite, self.history.get(MONITOR, ())), default=None)

    def points(self, name: str) -> list[tuple[float, float]]:
        """A column beside the epochs, which count from 1."""
        columns = self.history if name in self.history else self.epochs
        epochs = columns.get("epoch", ())
        return [(e + 1, v) for e, v in zip(epochs, columns.get(name, ()), strict=False)]


def open_run(path: str | os.PathLike) -> RunData:
    """Reads the records of a run.

    Args:
        path: Folder of a run of `fit` or `keras-deeplab train`.

    Returns:
        The `RunData`.

    Raises:
        ValueError: If it is not such a folder, or its files are damaged.

    Example:

    >>> run = keras_deeplab.trainer.open_run("runs/photos")
    >>> run.num_epochs, run.best_score
    (40, 0.78)
    """
    folder = RunFolder(Path(path))
    if not folder.arguments.is_file():
        raise ValueError(
            f"{folder.path} is not the folder of a run: it has no {folder.arguments.name}."
        )
    settings = flat(read_json(folder.arguments, RESTORE))
    scores = read_json(folder.metrics, RESTORE) if folder.metrics.exists() else None
    if scores is not None and not _are_scores(scores):
        raise ValueError(f"{folder.metrics} must hold the scores of a run. {RESTORE}")
    return RunData(
        path=folder.path,
        settings=settings,
        history=columns(folder.history),
        epochs=columns(folder.epochs),
        scores=scores,
    )


def _are_scores(content: dict[str, Any]) -> bool:
    per_class, split = content.get("per_class"), content.get("split", "")
    if not isinstance(per_class, dict) or not isinstance(split, str):
        return False
    values = [content.get("mean_iou"), content.get("pixel_accuracy"), *per_class.values()]
    return all(value is None or is_number(value) for value in values)


def columns(path: Path) -> Columns:
    """Returns the numbers of a table of epochs, by the names of its columns."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        try:
            rows = [row for row in csv.DictReader(file) if math.isfinite(_number(row.get("epoch")))]
        except csv.Error as error:
            raise ValueError(f"{path} is damaged: {error}. {RESTORE}") from error
    names = [name for name in (rows[0] if rows else ()) if name]
    return {name: [_number(row[name]) for row in rows] for name in names}


def _number(text: str | None) -> float:
    """The number of a cell; NaN for the "NA" of an epoch without validation."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return math.nan


def charts(runs: dict[str, RunData], titles: dict[str, dict[str, str]]) -> str:
    """Draws columns of runs over the epochs.

    Args:
        runs: The runs by their names; the name "" is not shown.
        titles: For each chart its title, and its columns with the names of the curves.

    Returns:
        HTML.
    """
    return "".join(
        line_chart(
            title,
            {
                " ".join(filter(None, (name, curve))): run.points(column)
                for name, run in runs.items()
                for column, curve in columns.items()
            },
        )
        for title, columns in titles.items()
    )
