"""What `overfit` returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

NAMED = 5


@dataclass(frozen=True)
class Check:
    """What one check found.

    Attributes:
        name: The possible cause (see `OverfitReport.cause`).
        passed: Whether this is not the cause.
        message: What was measured, and where this is the cause, what to do.
    """

    name: str
    passed: bool
    message: str


@dataclass(frozen=True)
class OverfitReport:
    """How `overfit` went; `print` shows it in a few lines, `to_dict` is ready for JSON.

    Attributes:
        fits: Whether the mean IoU in inference mode reached the target.
        cause: None where it did, else the first check that failed: `"data"`, `"trainable"`,
            `"gradients"`, `"features"`, `"optimisation"`, `"batch_norm"`, `"detail"`, `"steps"`
            or `"plateau"`.
        checks: The checks of a model that does not fit, the most basic first, up to the cause.
        mean_iou: In inference mode, after the last step; None where nothing was trained.
        training_iou: Mean IoU in training mode before the last step, likewise.
        target: The mean IoU to reach.
        per_class: IoU in inference mode by class name, None for a class that does not occur.
        steps: Steps trained.
        seconds: Seconds taken by training and its scores, without the diagnosis.
        images: Number of images.
        crop_size: `(height, width)` of the windows.
        losses: The loss of each step; None where it was not finite.
        scores: Pairs `(steps, mean IoU in inference mode)` along the way.
    """

    fits: bool
    cause: str | None
    checks: tuple[Check, ...]
    mean_iou: float | None
    training_iou: float | None
    target: float
    per_class: dict[str, float | None]
    steps: int
    seconds: float
    images: int
    crop_size: tuple[int, int]
    losses: tuple[float | None, ...] = field(repr=False)
    scores: tuple[tuple[int, float], ...] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Returns a plain dict, ready for `json.dump`."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """Returns the outcome, and where it did not fit, each check with what it measured."""
        height, width = self.crop_size
        what = f"{self.images} images of {width}x{height}"
        if self.mean_iou is None:
            reached = f"Nothing was trained on {what}"
        else:
            took = f"{self.steps} steps, {self.seconds:.0f} s"
            reached = f"Mean IoU {self.mean_iou:.3f} on {what} after {took}"
        if self.fits:
            return f"{reached}: the model fits them (target {self.target:g})."
        lines = [f"{reached}: the model does not fit them (target {self.target:g})."]
        lines += [f"  {_mark(check)} {check.name}: {check.message}" for check in self.checks]
        return "\n".join(lines)


def _mark(check: Check) -> str:
    return "ok   " if check.passed else "CAUSE"


def listed(names: Sequence[Any]) -> str:
    """The first few names, and how many there are besides."""
    more = f" and {len(names) - NAMED} more" * (len(names) > NAMED)
    return ", ".join(map(str, names[:NAMED])) + more
