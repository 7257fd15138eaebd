"""The stages of a run, each a `model.fit` that resumes where it was stopped."""

from __future__ import annotations

import argparse
from typing import Any

import keras
import tensorflow as tf

import keras_deeplab
from keras_deeplab import MultiScale, data, recipes
from keras_deeplab.distribution import evaluation_batches, training_batches
from training.building import build, check_frozen_norms, unfold
from training.callbacks import KeepModels, Progress, SeedEpochs, StopOnLostLoss
from training.distribution import StartTogether, is_chief
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
        strategy: Of the devices that train together.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        recipe: recipes.Recipe,
        source: data.Source,
        report: data.Report,
        folder: RunFolder,
        epochs_done: int,
        strategy: tf.distribute.Strategy,
    ) -> None:
        self.options = options
        self.source = source
        self.report = report
        self.folder = folder
        self.epochs_done = epochs_done
        self.strategy = strategy
        images = len(source.names("train"))
        self.steps_per_epoch = options.steps_per_epoch or -(-images // recipe.batch_size)
        self.stages = recipe.stages()
        steps = [stage.total_steps(self.steps_per_epoch) for stage in self.stages]
        self.epochs = [count // self.steps_per_epoch for count in steps]
        self.class_weights = None
        if recipe.class_weights is not None:
            part = report.splits["train"]
            self.class_weights = keras_deeplab.losses.shares_to_weights(
                part.class_share,
                part.where_present,
                recipe.class_weights,
                power=recipe.class_weights_power,
            )

    def train(self, weights: keras_deeplab.weights.Checkpoint | None) -> None:
        """Trains all stages that are not done yet."""
        model = None
        for number, recipe in enumerate(self.stages):
            last_stage = number == len(self.stages) - 1
            first = sum(self.epochs[:number])
            if self.epochs_done >= first + self.epochs[number] and not last_stage:
                continue
            if len(self.stages) > 1:
                print(f"Stage {number + 1} of {len(self.stages)}")
            with self.strategy.scope():
                model = self._model(number, weights, model)
                self._compile(model, recipe, number)
            self._fit(model, recipe, number, first)

    def _model(
        self,
        number: int,
        weights: keras_deeplab.weights.Checkpoint | None,
        before: keras.Model | None = None,
    ) -> keras.Model:
        """The model that a stage begins with; `before` is what the stage before it has left."""
        recipe = self.stages[number]
        if number > 0:
            if before is None:
                before = self._model(number - 1, weights)
                # Only the first of several machines has it; the others get its weights as they
                # start. Within the stage, its own weights are restored.
                if self._epochs_done_in(number) == 0 and self.folder.last_model.exists():
                    before.load_weights(self.folder.last_model)
            return before.with_output_stride(recipe.output_stride)
        model = build(self.options, recipe, self.source.info, weights)
        check_frozen_norms(model, recipe, self.options.weights)
        if not self.epochs_done:
            unfold(model, weights, self._images(recipe, 0, 0))
        if recipe.multi_scale is not None:
            model = MultiScale(model, recipe.multi_scale)
        if len(self.stages) > 1 and not self.epochs_done:
            model.with_output_stride(self.stages[1].output_stride)  # raises early if it cannot
        return model

    def _epochs_done_in(self, number: int) -> int:
        """The epochs that an earlier start has done of a stage."""
        return max(0, self.epochs_done - sum(self.epochs[:number]))

    def _images(self, recipe: recipes.Recipe, number: int, first_step: int) -> Any:
        """The endless batches of a stage from a step on, the same whenever they are asked for."""
        return data.training_dataset(
            self.source,
            crop_size=recipe.crop_size,
            batch_size=recipe.batch_size,
            scales=recipe.scales,
            scale_step=recipe.scale_step,
            flip=recipe.flip,
            color_jitter=recipe.color_jitter,
            class_focus=recipe.class_focus,
            seed=self._seed(number),
            repeat=True,
            first_step=first_step,
        )

    def _seed(self, number: int) -> int:
        return self.options.seed + 1_000_003 * number

    def _compile(self, model: keras.Model, recipe: recipes.Recipe, number: int) -> None:
        recipes.compile_model(
            model,
            recipe,
            total_steps=self.steps_per_epoch * self.epochs[number],
            class_names=self.source.info.classes,
            class_weights=self.class_weights,
            synchronized=self.strategy.num_replicas_in_sync > 1,
        )
        # Without its variables the optimizer makes them in the first step, which is then traced
        # twice.
        model.optimizer.build(model.trainable_variables)

    def _fit(self, model: keras.Model, recipe: recipes.Recipe, number: int, first: int) -> None:
        steps, epochs = self.steps_per_epoch, self.epochs[number]
        images = self._images(recipe, number, self._epochs_done_in(number) * steps)
        validation = self._validation()
        if validation is not None:
            validation = evaluation_batches(validation, self.strategy)
        model.fit(
            training_batches(images, self.strategy),
            validation_data=validation,
            validation_freq=self._validated(first, epochs),
            initial_epoch=max(first, self.epochs_done),
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
        progress = Progress(self.source.info.classes, self.steps_per_epoch, sum(self.epochs))
        return [
            *([progress] if is_chief(self.strategy) else []),
            SeedEpochs(self.options.seed),
            StopOnLostLoss(self.folder, names, self.steps_per_epoch),
            keras.callbacks.CSVLogger(self.folder.history, append=self.epochs_done + first > 0),
            *boards,
            # Last of those that write: a run that is stopped after it resumes with the next epoch.
            KeepModels(self.folder, "val" in self.source.splits, self._epochs_done_in(number) > 0),
            StartTogether(self.strategy),
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
