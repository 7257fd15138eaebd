"""What happens at the end of a step and of an epoch: models kept, lost ones refused."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable

import keras

from training.files import written_aside
from training.run_folder import MONITOR, RunFolder

SHOWN_NAMES = 16


class KeepModels(keras.callbacks.Callback):
    """Keeps the last model, and the best one by validation mean IoU.

    Args:
        folder: Where they are kept.
        validated: Whether there is validation; without it the last model is the best.
    """

    def __init__(self, folder: RunFolder, validated: bool = True) -> None:
        super().__init__()
        self.folder = folder
        self.validated = validated
        self.best = folder.best_score()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Saves the model, each file written aside and renamed."""
        score = (logs or {}).get(MONITOR)
        with written_aside(self.folder.last_model) as aside:
            self.model.save(aside)
        if self._is_best(score):
            self.best = score if self.validated and not math.isnan(score) else self.best
            with written_aside(self.folder.best_model) as aside:
                shutil.copyfile(self.folder.last_model, aside)

    def _is_best(self, score: float | None) -> bool:
        if not self.validated:
            return True
        # Not every epoch is followed by a validation.
        return score is not None and (score > self.best or not self.folder.best_model.exists())


class StopOnLostLoss(keras.callbacks.Callback):
    """Ends a run whose loss is no number any more, before anything of it is kept.

    Args:
        folder: Of the run.
        batch_names: Gives the names of the images of a step, counted from the run's first.
        steps_per_epoch: Steps of an epoch.
    """

    def __init__(
        self, folder: RunFolder, batch_names: Callable[[int], list[str]], steps_per_epoch: int
    ) -> None:
        super().__init__()
        self.folder = folder
        self.batch_names = batch_names
        self.steps_per_epoch = steps_per_epoch
        self.epoch = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Notes the epoch."""
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Looks at the loss.

        Raises:
            ValueError: If it is not finite: with the step, its images and what is kept.
        """
        loss = float((logs or {}).get("loss", 0.0))
        if math.isfinite(loss):
            return
        step = self.epoch * self.steps_per_epoch + batch
        names = self.batch_names(step)
        more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
        last = self.folder.last_model
        kept = f"the last good model is {last}" if last.exists() else "none is kept"
        raise ValueError(
            f"the loss became {loss} in epoch {self.epoch + 1}, step {step + 1} of the run, on the "
            f"images {', '.join(names[:SHOWN_NAMES])}{more}; {kept}. Look at these images, or "
            "start again with a smaller --learning-rate and another --output."
        )
