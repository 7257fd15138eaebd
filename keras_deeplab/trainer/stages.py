"""The stages of a recipe on one data set, each a `model.fit`, and resuming them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from inspect import signature
from pathlib import Path

import keras
import tensorflow as tf

from keras_deeplab import data, losses, recipes
from keras_deeplab.data.audit import LARGEST_CROP
from keras_deeplab.data.augmentation.augmenting import Transform
from keras_deeplab.distribution import evaluation_batches, training_batches
from keras_deeplab.inference import logits_spec
from keras_deeplab.models import MultiScale
from keras_deeplab.recipes import Recipe
from keras_deeplab.tensorboard import TensorBoard
from keras_deeplab.trainer import checks
from keras_deeplab.trainer.building import ModelBuilder
from keras_deeplab.trainer.callbacks import (
    Checkpoint,
    EpochTimes,
    History,
    SeedEpochs,
    StopOnNonFinite,
)
from keras_deeplab.trainer.finishing import PICTURES, few_images
from keras_deeplab.trainer.run_folder import RunFolder
from keras_deeplab.trainer.workers import StartTogether

logger = logging.getLogger(__name__)

VALIDATIONS = 40  # of a long run
PART_SIZE = 2048  # pixels a side: larger validation images are cut
# Fields of a recipe that are arguments of `data.training_dataset`.
DATASET_FIELDS = {field.name for field in fields(Recipe)} & set(
    signature(data.training_dataset).parameters
)


@dataclass
class Training:
    """The stages of a recipe on one data set."""

    model: keras.Model | ModelBuilder
    recipe: Recipe
    source: data.Source
    report: data.Report
    strategy: tf.distribute.Strategy
    steps_per_epoch: int
    seed: int
    folder: RunFolder | None
    callbacks: Sequence[keras.callbacks.Callback] = ()
    transform: Transform | None = None
    curves: Path | None = None  # for TensorBoard
    epochs_done: int = 0

    def __post_init__(self) -> None:
        self.stages = self.recipe.stages()
        self.epochs = [stage.num_epochs(self.steps_per_epoch) for stage in self.stages]

    def train(self) -> tuple[keras.Model, dict[str, list[float]]]:
        """Trains all stages that are not completed; returns the last model and the history."""
        model, history = None, {}
        for number in range(len(self.stages)):
            is_last = number == len(self.stages) - 1
            if self.epochs_done >= sum(self.epochs[: number + 1]) and not is_last:
                continue
            if len(self.stages) > 1:
                logger.info("Stage %d of %d", number + 1, len(self.stages))
            with self.strategy.scope():
                model = self._model(number, model)
                self._compile(model, number)
            log = self._fit(model, number)
            for key, values in {"epoch": log.epoch, **log.history}.items():
                history.setdefault(key, []).extend(map(float, values))
        return model, history

    def _model(self, number: int, before: keras.Model | None = None) -> keras.Model:
        """The model that a stage begins with; `before` is the model after the stage before."""
        if number == 0:
            return self._first_model()
        if before is None:
            before = self._first_model()
            # Only the chief has it; the other workers get its weights as they start. Within the
            # stage, its own weights are restored.
            if self._epochs_done_in(number) == 0 and self.folder is not None:
                before.load_weights(self.folder.last_model)
        return before.with_output_stride(self.stages[number].output_stride)

    def _first_model(self) -> keras.Model:
        recipe, model = self.stages[0], self.model
        if isinstance(model, ModelBuilder):
            images = None if self.epochs_done else self._images(0, 0, cache=False)
            info = self.source.info
            model = model.build(info.num_classes, recipe, images, info.channels)
        if not self.epochs_done:
            checks.check_frozen_norms(model, recipe)
            checks.check_input_size(model, recipe, self.report)
            checks.warn_of_padding(model, recipe.crop_size)
        if recipe.multi_scale is not None:
            model = MultiScale(model, recipe.multi_scale)
        if len(self.stages) > 1 and not self.epochs_done:
            model.with_output_stride(self.stages[1].output_stride)  # raises early if it cannot
        return model

    def _epochs_done_in(self, number: int) -> int:
        """The completed epochs of a stage."""
        return max(0, self.epochs_done - sum(self.epochs[:number]))

    def _images(self, number: int, first_step: int, cache: bool | str = "auto") -> tf.data.Dataset:
        """The endless batches of a stage from a step on, the same in every call."""
        recipe = self.stages[number]
        return data.training_dataset(
            self.source,
            **{name: getattr(recipe, name) for name in DATASET_FIELDS},
            transform=self.transform,
            seed=self._seed(number),
            repeat=True,
            first_step=first_step,
            cache=cache,
        )

    def warn_of_dark_images(self) -> None:
        """Warns of an own augmentation that returns values in 0..1."""
        images, _ = next(iter(self._images(0, 0, cache=False).take(1)))
        if 0 < (highest := tf.reduce_max(images)) <= 1:
            logger.warning(
                "`transform` must return images of values in 0..255. Received: values up to %.3g, "
                "almost black. Do not divide by 255.",
                highest,
            )

    def _seed(self, number: int) -> int:
        return self.seed + 1_000_003 * number

    @cached_property
    def _class_weights(self) -> Sequence[float] | None:
        if self.recipe.class_weights is None:
            return None
        part = self.report.splits["train"]
        return losses.shares_to_weights(
            part.class_share,
            part.where_present,
            self.recipe.class_weights,
            power=self.recipe.class_weights_power,
        )

    def _compile(self, model: keras.Model, number: int) -> None:
        recipes.compile_model(
            model,
            self.stages[number],
            total_steps=self.steps_per_epoch * self.epochs[number],
            class_names=self.source.info.classes,
            class_weights=self._class_weights,
            synchronized=self.strategy.num_replicas_in_sync > 1,
        )
        # Without its variables the optimizer makes them in the first step, which is traced twice.
        model.optimizer.build(model.trainable_variables)

    def _fit(self, model: keras.Model, number: int) -> keras.callbacks.History:
        steps, first = self.steps_per_epoch, sum(self.epochs[:number])
        images = self._images(number, self._epochs_done_in(number) * steps)
        labelled = self._validation_images(model)
        last = first + self.epochs[number]
        every = -(-sum(self.epochs) // VALIDATIONS)
        # The last epoch is validated; epochs count from 1.
        validated = [e for e in range(first + 1, last + 1) if (last - e) % every == 0]
        return model.fit(
            training_batches(images, self.strategy),
            validation_data=labelled and evaluation_batches(labelled, self.strategy),
            validation_freq=validated,
            initial_epoch=max(first, self.epochs_done),
            epochs=last,
            steps_per_epoch=steps,
            callbacks=self._callbacks(number, first, validated),
            shuffle=False,  # the dataset shuffles itself
            verbose=0,
        )

    def _callbacks(
        self, number: int, first: int, validated: Sequence[int]
    ) -> list[keras.callbacks.Callback]:
        recipe, folder = self.stages[number], self.folder

        def batch_names(step: int) -> list[str]:
            return data.batch_names(
                self.source,
                batch_size=recipe.batch_size,
                step=step - first * self.steps_per_epoch,
                seed=self._seed(number),
            )

        made = [
            *self.callbacks,
            SeedEpochs(self.seed),
            StopOnNonFinite(batch_names, self.steps_per_epoch, folder),
        ]
        if folder is not None:
            append = self.epochs_done + first > 0
            made.append(History(folder.history, append=append))
            made.append(EpochTimes(folder, self.steps_per_epoch))
        if self.curves is not None:
            split = "val" if "val" in self.source.splits else "train"
            shown = few_images(self.source, split)
            made.append(
                TensorBoard(self.curves, shown, self.source.info.colors, PICTURES, validated)
            )
        if folder is not None:
            # Last of those that write: a run that is stopped after it resumes with the next epoch.
            has_val, resumed = "val" in self.source.splits, self._epochs_done_in(number) > 0
            made.append(Checkpoint(folder, has_val, restore=resumed, epochs=validated))
        return [*made, StartTogether(self.strategy)]

    def _validation_images(self, model: keras.Model) -> tf.data.Dataset | None:
        """Validation images, several at a time where all have one size that is not large.

        Large ones are cut, but for a model of a fixed input size.
        """
        if "val" not in self.source.splits:
            return None
        part = self.report.splits["val"]
        fitting = 4 * LARGEST_CROP**2 // (part.largest[0] * part.largest[1])
        batch = max(1, min(4, fitting)) if part.smallest == part.largest else 1
        any_size = tuple(logits_spec(model)[0].shape[1:3]) == (None, None)
        part_size = PART_SIZE if any_size and max(part.largest) > PART_SIZE else None
        return data.evaluation_dataset(self.source, batch_size=batch, part_size=part_size)
