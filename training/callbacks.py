"""What happens after a step and after an epoch: progress shown, models kept, lost ones refused."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence

import keras
import numpy as np

from keras_deeplab.files import atomic_write, stored_bytes
from keras_deeplab.graph.network import all_layers
from keras_deeplab.metrics import key_of_class
from training.run_folder import MONITOR, Record, RunFolder

SHOWN_NAMES = 16


class Progress(keras.callbacks.Callback):
    """Shows loss and mean IoU of each step, and the classes' IoU after a validation.

    Keras' own progress bar shows every number of every class at each step.

    Args:
        class_names: One name per class.
        steps_per_epoch: Steps of an epoch.
        epochs: Of the whole run, all its stages.
    """

    def __init__(self, class_names: Sequence[str], steps_per_epoch: int, epochs: int) -> None:
        super().__init__()
        self.class_names = list(class_names)
        self.steps_per_epoch = steps_per_epoch
        self.epochs = epochs
        self.bar = keras.utils.Progbar(steps_per_epoch)

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002
        """Begins a bar."""
        print(f"Epoch {epoch + 1}/{self.epochs}")
        self.bar = keras.utils.Progbar(
            self.steps_per_epoch, stateful_metrics=["loss", "mean_iou"], unit_name="step"
        )

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Lengthens the bar."""
        self.bar.update(batch + 1, self._shown(logs or {}, ("loss", "mean_iou")), finalize=False)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002
        """Ends the bar with what validation gave, if there was one."""
        logs = logs or {}
        totals = ("loss", "mean_iou", "val_loss", MONITOR, "val_pixel_accuracy")
        self.bar.update(self.steps_per_epoch, self._shown(logs, totals), finalize=True)
        if MONITOR not in logs:
            return
        scores = {name: _of_class(logs, "iou", name) for name in self.class_names}
        print("  val IoU: " + ", ".join(f"{name} {_percent(x)}" for name, x in scores.items()))
        absent = [n for n in self.class_names if _of_class(logs, "predicted_share", n) == 0]
        if absent:
            print(f"  never predicted: {', '.join(absent)}")

    def _shown(self, logs: dict[str, float], names: Sequence[str]) -> list[tuple[str, float]]:
        return [(name, float(logs[name])) for name in names if name in logs]


def _of_class(logs: dict[str, float], what: str, name: str) -> float:
    return float(logs[f"val_{what}_{key_of_class(name)}"])


def _percent(score: float) -> str:
    return "absent" if math.isnan(score) else f"{100 * score:.1f}"


class SeedEpochs(keras.callbacks.Callback):
    """Gives dropout in each epoch a seed of its own, whether the run was started or resumed there.

    The last model holds weights and optimizer, but not the state of random layers.

    Args:
        seed: Of the run.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002
        """Sets the state of all random layers."""
        for number, layer in enumerate(all_layers(self.model).values()):
            random = getattr(layer, "seed_generator", None)
            if random is not None:
                state = np.random.SeedSequence([self.seed % 2**32, epoch, number])
                random.state.assign(state.generate_state(2))


class KeepModels(keras.callbacks.Callback):
    """Keeps the best model by validation mean IoU, and the last one, from which a run resumes.

    In one file model, optimizer and epoch are always of one time. `BackupAndRestore` of Keras
    writes them into two, with HDF5 on the disk, which may end the process when the disk is full.

    Args:
        folder: Where they are kept.
        validated: Whether there is validation; without it the last model is the best.
        restore: Whether training resumes from the last model.
    """

    def __init__(self, folder: RunFolder, validated: bool = True, restore: bool = False) -> None:
        super().__init__()
        self.folder = folder
        self.validated = validated
        self.restore = restore
        self.best = folder.best_score()

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002
        """Takes over weights and optimizer; several machines have a last model on the first."""
        if self.restore and self.folder.last_model.exists():
            self.model.load_weights(self.folder.last_model)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Saves the model, each file written aside and renamed."""
        score = (logs or {}).get(MONITOR)
        best = self._is_best(score)
        scored = self.validated and score is not None and not math.isnan(score)
        if best and scored:
            self.best = float(score)
        record = Record(
            self.folder.run,
            epochs=epoch + 1,
            score=float(score) if scored else None,
            best=None if math.isinf(self.best) else self.best,
        )
        size = stored_bytes(self.model)
        with atomic_write(self.folder.last_model, size) as aside:
            self.model.save(aside)
            record.write(aside)
            # First, as the run resumes after this epoch once the last model is there.
            if best:
                with atomic_write(self.folder.best_model, size) as copy:
                    shutil.copyfile(aside, copy)

    def _is_best(self, score: float | None) -> bool:
        if not self.validated:
            return True
        # Not every epoch is followed by a validation.
        return score is not None and (score > self.best or not self.folder.best_model.exists())


class StopOnLostLoss(keras.callbacks.Callback):
    """Ends a run whose loss or weights are no numbers any more, before anything of it is kept.

    The loss of a step is that of the weights before its update: what the last update of an epoch
    breaks would show in the next epoch only, when this one is kept. So the weights are looked at
    too, after an epoch's last step.

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

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002
        """Notes the epoch."""
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Looks at the loss, and after the epoch's last step at the weights.

        Raises:
            ValueError: If they are not finite: with the step, its images and what is kept.
        """
        loss = float((logs or {}).get("loss", 0.0))
        if not math.isfinite(loss):
            raise self._lost(f"the loss became {loss}", batch)
        if batch + 1 == self.steps_per_epoch:
            broken = [w.path for w in self.model.weights if not np.isfinite(w).all()]
            if broken:
                more = f" and {len(broken) - 1} more weights" if len(broken) > 1 else ""
                raise self._lost(f"{broken[0]}{more} became infinite or nan", batch)

    def _lost(self, what: str, batch: int) -> ValueError:
        step = self.epoch * self.steps_per_epoch + batch
        names = self.batch_names(step)
        more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
        last = self.folder.last_model
        kept = f"the last good model is {last}" if last.exists() else "none is kept"
        return ValueError(
            f"{what} in epoch {self.epoch + 1}, step {step + 1} of the run, on the images "
            f"{', '.join(names[:SHOWN_NAMES])}{more}; {kept}. Look at these images, or "
            "start again with a smaller --learning-rate and another --output."
        )
