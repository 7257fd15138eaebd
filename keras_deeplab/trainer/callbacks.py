"""Callbacks of a run: progress, seeds, checkpoints, and the check for a non-finite loss."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Sequence

import keras
import numpy as np

from keras_deeplab.files import atomic_write, stored_bytes
from keras_deeplab.graph.network import all_layers
from keras_deeplab.metrics import key_of_class
from keras_deeplab.trainer.run_folder import MONITOR, Record, RunFolder

logger = logging.getLogger(__name__)

SHOWN_NAMES = 16
Logs = dict[str, float] | None


class Progress(keras.callbacks.Callback):
    """A progress bar of loss and mean IoU; logs the IoU of each class after a validation.

    Keras' own progress bar shows every metric of every class at each step.

    Args:
        class_names: One name per class.
        steps_per_epoch: Steps of an epoch.
        epochs: Epochs of all stages.
    """

    def __init__(self, class_names: Sequence[str], steps_per_epoch: int, epochs: int) -> None:
        super().__init__()
        self.class_names = list(class_names)
        self.steps_per_epoch = steps_per_epoch
        self.epochs = epochs
        self.bar = keras.utils.Progbar(steps_per_epoch)

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:  # noqa: ARG002
        """Starts a bar."""
        logger.info("Epoch %d/%d", epoch + 1, self.epochs)
        self.bar = keras.utils.Progbar(
            self.steps_per_epoch, stateful_metrics=["loss", "mean_iou"], unit_name="step"
        )

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Updates the bar."""
        self.bar.update(batch + 1, _shown(logs or {}, ("loss", "mean_iou")), finalize=False)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:  # noqa: ARG002
        """Ends the bar, with the validation's scores if there was a validation."""
        logs = logs or {}
        totals = ("loss", "mean_iou", "val_loss", MONITOR, "val_pixel_accuracy")
        self.bar.update(self.steps_per_epoch, _shown(logs, totals), finalize=True)
        if MONITOR not in logs:
            return
        scores = [(name, _of_class(logs, "iou", name)) for name in self.class_names]
        shown = ", ".join(
            f"{name} {'absent' if math.isnan(score) else f'{100 * score:.1f}'}"
            for name, score in scores
        )
        logger.info("  val IoU: %s", shown)
        absent = [n for n in self.class_names if _of_class(logs, "predicted_share", n) == 0]
        if absent:
            logger.info("  never predicted: %s", ", ".join(absent))


def _shown(logs: dict[str, float], names: Sequence[str]) -> list[tuple[str, float]]:
    return [(name, float(logs[name])) for name in names if name in logs]


def _of_class(logs: dict[str, float], metric: str, name: str) -> float:
    return float(logs[f"val_{metric}_{key_of_class(name)}"])


class SeedEpochs(keras.callbacks.Callback):
    """Seeds dropout by the epoch, so that a resumed run draws as an uninterrupted one does.

    A `.keras` file holds weights and optimizer, but not the state of random layers.

    Args:
        seed: Seed of the run.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:  # noqa: ARG002
        """Sets the state of all random layers."""
        for number, layer in enumerate(all_layers(self.model).values()):
            random = getattr(layer, "seed_generator", None)
            if random is not None:
                state = np.random.SeedSequence([self.seed % 2**32, epoch, number])
                random.state.assign(state.generate_state(2))


class Checkpoint(keras.callbacks.Callback):
    """Saves the last model, from which a run resumes, and the best one by validation mean IoU.

    One file stores model, optimizer and epoch consistently. Keras' `BackupAndRestore` writes them
    into two, with HDF5 on the disk, which may end the process when the disk is full.

    Args:
        folder: Folder of the run.
        validated: Whether there is validation data; without it the last model is the best.
        restore: Whether to start from the last model.
    """

    def __init__(self, folder: RunFolder, validated: bool = True, restore: bool = False) -> None:
        super().__init__()
        self.folder = folder
        self.validated = validated
        self.restore = restore
        self.best = folder.best_score()

    def on_train_begin(self, logs: Logs = None) -> None:  # noqa: ARG002
        """Restores weights and optimizer; of several workers only the chief has the file."""
        if self.restore and self.folder.last_model.exists():
            self.model.load_weights(self.folder.last_model)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Saves the model, with atomic writes."""
        score = (logs or {}).get(MONITOR) if self.validated else None
        is_best = not self.validated or (
            # Not every epoch is followed by a validation.
            score is not None and (score > self.best or not self.folder.best_model.exists())
        )
        score = None if score is None or math.isnan(score) else float(score)
        if is_best and score is not None:
            self.best = score
        best = None if math.isinf(self.best) else self.best
        record = Record(self.folder.run, epochs=epoch + 1, score=score, best=best)
        size = stored_bytes(self.model)
        with atomic_write(self.folder.last_model, size) as temporary:
            self.model.save(temporary)
            record.write(temporary)
            # First, as the run resumes after this epoch once the last model is in its place.
            if is_best:
                with atomic_write(self.folder.best_model, size) as copy:
                    shutil.copyfile(temporary, copy)


class StopOnNonFinite(keras.callbacks.Callback):
    """Stops a run whose loss or weights are not finite, before they are saved.

    The loss of a step is that of the weights before its update: what the last update of an epoch
    breaks would show in the next epoch only, after the model was saved. So the weights are checked
    too, after the last step of an epoch.

    Args:
        batch_names: Returns the names of the images of a step, counted from the run's first.
        steps_per_epoch: Steps of an epoch.
        folder: Folder of the run, if it has one.
    """

    def __init__(
        self,
        batch_names: Callable[[int], list[str]],
        steps_per_epoch: int,
        folder: RunFolder | None = None,
    ) -> None:
        super().__init__()
        self.batch_names = batch_names
        self.steps_per_epoch = steps_per_epoch
        self.folder = folder
        self.epoch = 0

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:  # noqa: ARG002
        """Notes the epoch."""
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Checks the loss, and after the last step of an epoch the weights.

        Raises:
            ValueError: If they are not finite, with the step, its images and the last good model.
        """
        loss = float((logs or {}).get("loss", 0.0))
        if not math.isfinite(loss):
            raise self._error(f"the loss became {loss}", batch)
        if batch + 1 == self.steps_per_epoch:
            broken = [w.path for w in self.model.weights if not np.isfinite(w).all()]
            if broken:
                more = f" and {len(broken) - 1} more weights" if len(broken) > 1 else ""
                raise self._error(f"{broken[0]}{more} became infinite or nan", batch)

    def _error(self, what: str, batch: int) -> ValueError:
        step = self.epoch * self.steps_per_epoch + batch
        names = self.batch_names(step)
        more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
        saved = ""
        if self.folder is not None:
            last = self.folder.last_model
            saved = f"; the last good model is {last}" if last.exists() else "; no model was saved"
        return ValueError(
            f"{what} in epoch {self.epoch + 1}, step {step + 1} of the run, on the images "
            f"{', '.join(names[:SHOWN_NAMES])}{more}{saved}. Look at these images, or start again "
            "with a smaller learning rate in another folder."
        )
