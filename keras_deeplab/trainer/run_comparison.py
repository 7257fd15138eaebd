"""Runs side by side, as text and as one HTML page that needs no other file."""

from __future__ import annotations

import html
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from keras_deeplab import validation
from keras_deeplab.html_page import cell, page, table
from keras_deeplab.names import printable
from keras_deeplab.trainer.run_data import RunData, charts, open_run
from keras_deeplab.trainer.run_folder import LABELS, MONITOR

CHARTS = {
    "mean IoU on val": {MONITOR: ""},
    "loss on train": {"loss": ""},
    "loss on val": {"val_loss": ""},
}
HASHES = {"data_files", LABELS}  # settings that do not tell a reader anything


@dataclass(frozen=True)
class Comparison:
    """Runs side by side; `print` shows the table.

    Attributes:
        runs: The runs by the names of their columns.
        rows: Names of the rows and their cells, one for each run.
        notes: What limits the comparison.
    """

    runs: dict[str, RunData]
    rows: dict[str, list[str]]
    notes: list[str]

    def __str__(self) -> str:
        rows = [["", *self.runs], *([name, *cells] for name, cells in self.rows.items())]
        rows = [[printable(cell) for cell in row] for row in rows]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join([*lines, *(printable(note, len(note)) for note in self.notes)])

    def html(self) -> str:
        """Returns the table and the curves as HTML that needs no other file."""
        notes = [f'<div class="finding note">{html.escape(note)}</div>' for note in self.notes]
        rows = ([name, *cells] for name, cells in self.rows.items())
        return page(
            "Runs",
            [*notes, table(rows, ["", *self.runs]), f"<h2>Curves</h2>{charts(self.runs, CHARTS)}"],
        )


def compare(paths: Sequence[str | os.PathLike]) -> Comparison:
    """Compares scores, time and differing settings of runs.

    Args:
        paths: Folders of runs, finished or not.

    Returns:
        A `Comparison`: the final scores of finished runs, IoU of the classes that all of them have,
        the best validation during the training, epochs, minutes, and the settings that differ.

    Raises:
        ValueError: If a path is not the folder of a run, its files are damaged, or there is none.

    Example:

    >>> comparison = keras_deeplab.trainer.compare(["runs/photos", "runs/photos-2"])
    >>> print(comparison)
    >>> page = comparison.html()
    """
    if not paths:
        raise validation.error("paths", "at least one folder of a run", paths)
    opened = [open_run(path) for path in paths]
    runs = dict(zip(_names(opened), opened, strict=True))
    finished = {name: run.scores for name, run in runs.items() if run.scores is not None}
    tables = [scores["per_class"] for scores in finished.values()]
    common = [name for name in (tables[0] if tables else ()) if all(name in t for t in tables)]
    rows = {
        "state": ["unfinished" if run.scores is None else "finished" for run in opened],
        "mean IoU": [_score(run, "mean_iou") for run in opened],
        **{f"IoU of {name}": [_score(run, "per_class", name) for run in opened] for name in common},
        "pixel accuracy": [_score(run, "pixel_accuracy") for run in opened],
        "best validation": [cell(run.best_score) for run in opened],
        "epochs": [str(run.num_epochs) for run in opened],
        "minutes": [cell(run.seconds and run.seconds / 60, ".1f") for run in opened],
    }
    for key in dict.fromkeys(key for run in opened for key in run.settings if key not in HASHES):
        values = [run.settings.get(key) for run in opened]
        if _differ(values):
            rows[key] = [str(run.settings.get(key, "")) for run in opened]
    return Comparison(runs, rows, _notes(runs, finished, common))


def _names(runs: Sequence[RunData]) -> list[str]:
    """Names of folders; their paths, or numbered paths, where those are the same."""
    for names in ([run.path.resolve().name for run in runs], [str(run.path) for run in runs]):
        if max(Counter(names).values()) == 1:
            return names
    return [f"{number}: {name}" for number, name in enumerate(names, 1)]


def _score(run: RunData, *keys: str) -> str:
    value: Any = run.scores
    if value is None:
        return ""
    for key in keys:
        value = value.get(key)
    return cell(value)


def _differ(values: Sequence[Any]) -> bool:
    """Whether values, also lists and mappings of an edited file, are not all the same."""
    return any(value != values[0] for value in values)


def _notes(
    runs: dict[str, RunData], finished: dict[str, dict[str, Any]], common: Sequence[str]
) -> list[str]:
    notes = []
    if any(_differ([run.settings.get(key) for run in runs.values()]) for key in HASHES):
        notes.append(
            "The runs have different images, label maps or classes: their scores differ for that "
            "too."
        )
    if _differ([run.settings.get("recipe.image_scale", 1) for run in runs.values()]):
        notes.append("The validations during the training are on images of different scales.")
    others = dict.fromkeys(n for s in finished.values() for n in s["per_class"] if n not in common)
    if others:
        notes.append(f"Classes that not all runs have: {', '.join(others)}.")
    splits = {name: scores.get("split") for name, scores in finished.items()}
    if _differ(list(splits.values())):
        listed = ", ".join(f"{name} on {split}" for name, split in splits.items())
        notes.append(f"The runs are scored on different splits: {listed}.")
    return notes
