"""The stages of a run, each a `model.fit` that goes on where it was stopped."""

from __future__ import annotations

import argparse
import shutil
from typing import Any

import keras

import keras_deeplab
from keras_deeplab import data, recipes
from training.building import build, unfold
from training.callbacks import KeepModels, Progress, SeedEpochs, StopOnLostLoss
from training.files import written_aside
from training.run_folder import RunFolder

LARGEST_CROP = 513
# So many times a long run is validated.
VALIDATIONS = 40


class Run:
    """A run of one recipe on one data set.

    Args:
        options: Of the command line, completed.
        recipe: What is trained, with all its stages.
        source: The data.
        report: Of the data's audit.
        folder: What is kept.
        epochs_done: Epochs that an earlier start of the same run has done.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        recipe: recipes.Recipe,
        source: data.Source,
        report: data.Report,
        folder: RunFolder,
        epochs_done: int,
    ) -> None:
        self.options = options
        self.source = source
        self.report = report
        self.folder = folder
        self.epochs_done = epochs_done
        images = len(source.names("train"))
        self.steps_per_epoch = options.steps_per_epoch or -(-images // recipe.batch_size)
        self.stages = recipe.stages()
        steps = [stage.total_steps(self.steps_per_epoch) for stage in self.stages]
        self.epochs = [count // self.steps_per_epoch for count in steps]
        self.class_weights = None
        if recipe.class_weights is not None:
            labels = source.dataset("train").map(lambda _, label: label)
            self.class_weights = keras_deeplab.losses.class_weights(
                labels, source.info.num_classes, recipe.class_weights
            )

    def train(self, weights: keras_deeplab.weights.Source | None) -> None:
        """Trains all stages that are not done yet."""
        for number, recipe in enumerate(self.stages):
            last_stage = number == len(self.stages) - 1
            first = sum(self.epochs[:number])
            if self.epochs_done >= first + self.epochs[number] and not last_stage:
                continue
            if len(self.stages) > 1:
                print(f"Stage {number + 1} of {len(self.stages)}")
            model = self._from_weights(recipe, weights) if number == 0 else self._finer(number)
            if recipe.multi_scale is not None and number == 0:
                model = keras_deeplab.MultiScale(model, recipe.multi_scale)
            self._fit(model, recipe, number, first)

    def _from_weights(
        self, recipe: recipes.Recipe, weights: keras_deeplab.weights.Source | None
    ) -> keras.Model:
        model = build(self.options, recipe, self.source.info, weights)
        if not self.epochs_done:
            unfold(model, weights, self._images(recipe, 0, 0))
        return model

    def _finer(self, number: int) -> keras.Model:
        """The model that the stage before has left, at this stage's output stride."""
        left = self.folder.end_of_stage(number - 1)
        if not left.exists():
            with written_aside(left) as aside:
                shutil.copyfile(self.folder.last_model, aside)
        model = keras.models.load_model(left, compile=False)
        return model.with_output_stride(self.stages[number].output_stride)

    def _images(self, recipe: recipes.Recipe, number: int, first_step: int) -> Any:
        """The endless batches of a stage from a step on, the same whenever they are asked for."""
        return data.training_dataset(
            self.source,
            crop_size=recipe.crop_size,
            batch_size=recipe.batch_size,
            scales=recipe.scales,
            scale_step=recipe.scale_step,
            color_jitter=recipe.color_jitter,
            class_focus=recipe.class_focus,
            seed=self._seed(number),
            repeat=True,
            first_step=first_step,
        )

    def _seed(self, number: int) -> int:
        return self.options.seed + 1_000_003 * number

    def _fit(self, model: keras.Model, recipe: recipes.Recipe, number: int, first: int) -> None:
        steps, info = self.steps_per_epoch, self.source.info
        epochs = self.epochs[number]
        recipes.compile_model(
            model,
            recipe,
            total_steps=steps * epochs,
            class_names=info.classes,
            class_weights=self.class_weights,
        )
        # Without its variables the optimizer makes them in the first step, which is then traced
        # twice.
        model.optimizer.build(model.trainable_variables)
        model.fit(
            self._images(recipe, number, max(0, self.epochs_done - first) * steps),
            validation_data=self._validation(),
            validation_freq=self._validated(first, epochs),
            initial_epoch=first,
            epochs=first + epochs,
            steps_per_epoch=steps,
            callbacks=self._callbacks(recipe, number, first),
            shuffle=False,  # the data set shuffles itself
            verbose=0,
        )

    def _callbacks(
        self, recipe: recipes.Recipe, number: int, first: int
    ) -> list[keras.callbacks.Callback]:
        def names(step: int) -> list[str]:
            return data.batch_names(
                self.source,
                "train",
                batch_size=recipe.batch_size,
                step=step - first * self.steps_per_epoch,
                seed=self._seed(number),
            )

        boards = []
        if self.options.tensorboard:
            pictures = self._validation() or data.evaluation_dataset(self.source, "train")
            colors = self.source.info.colors
            boards = [keras_deeplab.TensorBoard(self.folder.curves, pictures, colors=colors)]
        return [
            Progress(self.source.info.classes, self.steps_per_epoch, sum(self.epochs)),
            SeedEpochs(self.options.seed),
            StopOnLostLoss(self.folder, names, self.steps_per_epoch),
            keras.callbacks.CSVLogger(self.folder.history, append=self.epochs_done + first > 0),
            KeepModels(self.folder, "val" in self.source.splits),
            *boards,
            # Kept until the run is scored and exported, which may fail or be stopped too.
            keras.callbacks.BackupAndRestore(
                self.folder.backup(number), double_checkpoint=True, delete_checkpoint=False
            ),
        ]

    def _validation(self) -> Any:
        """Whole validation images, some at a time where all have one size and are not too large."""
        if "val" not in self.source.splits:
            return None
        part = self.report.splits["val"]
        fitting = 4 * LARGEST_CROP**2 // (part.largest[0] * part.largest[1])
        batch = max(1, min(4, fitting)) if part.smallest == part.largest else 1
        return data.evaluation_dataset(self.source, batch_size=batch)

    def _validated(self, first: int, epochs: int) -> list[int]:
        """The epochs, counted from 1, that are followed by a validation; the last is one."""
        every = -(-sum(self.epochs) // VALIDATIONS)
        last = first + epochs
        return [epoch for epoch in range(first + 1, last + 1) if (last - epoch) % every == 0]
