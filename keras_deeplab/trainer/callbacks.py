"""Callbacks of a run: progress, seeds, checkpoints, and the check for a non-finite loss."""

from __future__ import annotations

import csv
import logging
import math
import shutil
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import keras
import numpy as np

from keras_deeplab.files import atomic_write, stored_bytes
from keras_deeplab.graph.network import all_layers
from keras_deeplab.memory import peak_memory
from keras_deeplab.metrics import key_of_class
from keras_deeplab.names import printable
from keras_deeplab.trainer.run_folder import MONITOR, Record, RunFolder

logger = logging.getLogger(__name__)

SHOWN_SCORES = ("loss", "mean_iou", "val_loss", MONITOR, "val_pixel_accuracy")
SHOWN_NAMES = 16
SECONDS_BETWEEN_SAVES = 60
Logs = dict[str, float] | None


class Progress(keras.callbacks.Callback):
    """A progress bar of loss and mean IoU; logs the IoU of each class after a validation.

    Keras' own shows every metric of every class at each step.
    """

    def __init__(
        self, class_names: Sequence[str], steps_per_epoch: int, epochs: int, verbose: int = 1
    ) -> None:
        super().__init__()
        self.verbose = verbose
        self.keys = {printable(name): key_of_class(name) for name in class_names}
        self.steps_per_epoch = steps_per_epoch
        self.epochs = epochs

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:  # noqa: ARG002
        """Starts a bar."""
        logger.info("Epoch %d/%d", epoch + 1, self.epochs)
        self.bar = keras.utils.Progbar(
            self.steps_per_epoch,
            verbose=self.verbose,
            stateful_metrics=SHOWN_SCORES,
            unit_name="step",
        )

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Updates the bar."""
        self._show(batch + 1, logs or {}, finalize=False)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:  # noqa: ARG002
        """Ends the bar, with the validation's scores if there was a validation."""
        logs = logs or {}
        self._show(self.steps_per_epoch, logs, finalize=True)
        if MONITOR not in logs:
            return
        scores = {name: 100 * logs[f"val_iou_{key}"] for name, key in self.keys.items()}
        shown = [
            f"{name} {'absent' if math.isnan(iou) else f'{iou:.1f}'}"
            for name, iou in scores.items()
        ]
        logger.info("  val IoU: %s", ", ".join(shown))
        shares = {name: logs[f"val_predicted_share_{key}"] for name, key in self.keys.items()}
        if 0 in shares.values():
            never = [name for name, share in shares.items() if share == 0]
            logger.info("  never predicted: %s", ", ".join(never))

    def _show(self, step: int, logs: dict[str, float], finalize: bool) -> None:
        shown = [(name, float(logs[name])) for name in SHOWN_SCORES if name in logs]
        self.bar.update(step, shown, finalize=finalize)


class SeedEpochs(keras.callbacks.Callback):
    """Seeds dropout by the epoch, so that a resumed run draws as an uninterrupted one does.

    A `.keras` file holds weights and optimizer, but not the state of random layers.
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


class EpochTimes(keras.callbacks.Callback):
    """Appends time, learning rate and peak memory of each epoch to `epochs.csv`.

    `seconds` include the validation; `step_seconds` are the mean of the epoch's steps. They are not
    in the history, which a resumed run repeats exactly.
    """

    def __init__(self, folder: RunFolder, steps_per_epoch: int) -> None:
        super().__init__()
        self.folder = folder
        self.steps_per_epoch = steps_per_epoch

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:  # noqa: ARG002
        """Starts the clock."""
        self.begin = self.trained = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:  # noqa: ARG002
        """Notes when the steps end."""
        self.trained = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:  # noqa: ARG002
        """Writes a row."""
        row = {
            "epoch": epoch,
            "seconds": round(time.perf_counter() - self.begin, 3),
            "step_seconds": round((self.trained - self.begin) / self.steps_per_epoch, 5),
            "learning_rate": f"{float(np.asarray(self.model.optimizer.learning_rate)):.6g}",
            "peak_bytes": peak_memory(),
        }
        with self.folder.epochs.open("a", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(row), lineterminator="\n")
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(row)


class History(keras.callbacks.CSVLogger):
    """Writes loss and scores of each epoch, after a resume in the columns of the file."""

    def on_train_begin(self, logs: Logs = None) -> None:  # noqa: ARG002
        """Opens the file in UTF-8; Keras' own method takes the encoding of the locale."""
        columns: list[str] = []
        if self.append and Path(self.filename).exists():
            with Path(self.filename).open(encoding="utf-8", newline="") as file:
                columns = next(csv.reader(file), [])
        if self.csv_file and not self.csv_file.closed:
            self.csv_file.close()
        mode = "a" if self.append else "w"
        self.csv_file = Path(self.filename).open(mode, encoding="utf-8", newline="")  # noqa: SIM115
        self.append_header, self.writer, self.keys = not columns, None, columns[1:] or None


class Checkpoint(keras.callbacks.Callback):
    """Saves the last model, from which a run resumes, and the best one by validation mean IoU.

    It is saved after the first epoch, after the given ones, which count from 1 and are those of the
    validations, after others if a minute has passed (an epoch of few images takes less time than a
    save), and at the end. Without `validated` the last model is the best.
    Keras' `BackupAndRestore` writes model and epoch into two files, with HDF5 on the disk, which
    may end the process when the disk is full.
    """

    def __init__(
        self,
        folder: RunFolder,
        validated: bool = True,
        restore: bool = False,
        epochs: Collection[int] = (),
    ) -> None:
        super().__init__()
        self.folder = folder
        self.epochs = epochs
        self.saved = -math.inf
        self.unsaved: int | None = None
        self.validated = validated
        self.restore = restore
        self.best = folder.best_score()

    def on_train_begin(self, logs: Logs = None) -> None:  # noqa: ARG002
        """Restores weights and optimizer; of several workers only the chief has the file."""
        if self.restore and self.folder.last_model.exists():
            self.model.load_weights(self.folder.last_model)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Saves the model if it is time."""
        if epoch + 1 in self.epochs or time.monotonic() >= self.saved + SECONDS_BETWEEN_SAVES:
            self._save(epoch, logs)
        else:
            self.unsaved = epoch

    def on_train_end(self, logs: Logs = None) -> None:  # noqa: ARG002
        """Saves the model after an epoch at which another callback ended the training."""
        if self.unsaved is not None:
            self._save(self.unsaved)

    def _save(self, epoch: int, logs: Logs = None) -> None:
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
        with atomic_write(self.folder.last_model, size * (1 + is_best)) as temporary:
            self.model.save(temporary)
            record.write(temporary)
            # First, as the run resumes after this epoch once the last model is in its place.
            if is_best:
                with atomic_write(self.folder.best_model, size) as copy:
                    shutil.copyfile(temporary, copy)
        self.saved, self.unsaved = time.monotonic(), None


class StopOnNonFinite(keras.callbacks.Callback):
    """Stops a run whose loss or weights are not finite, before they are saved.

    `batch_names` returns the names of the images of a step, counted from the run's first. The loss
    of a step is that of the weights before its update, so the weights are checked too before an
    epoch is saved.
    """

    def __init__(
        self,
        batch_names: Callable[[int], list[str]],
        steps_per_epoch: int,
        folder: RunFolder | None,
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
            for weight in self.model.weights:
                if not np.isfinite(weight).all():
                    raise self._error(f"{weight.path} became infinite or nan", batch)

    def _error(self, what: str, batch: int) -> ValueError:
        step = self.epoch * self.steps_per_epoch + batch
        names = self.batch_names(step)
        more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
        saved = "no model was saved"
        if self.folder is not None and self.folder.last_model.exists():
            saved = f"the last good model is {self.folder.last_model}"
        return ValueError(
            f"{what} in epoch {self.epoch + 1}, step {step + 1} of the run, on the images "
            f"{', '.join(names[:SHOWN_NAMES])}{more}; {saved}. Look at these images, or start "
            "again with a smaller learning rate in another folder."
        )
