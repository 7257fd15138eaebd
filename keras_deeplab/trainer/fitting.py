"""Training by a recipe: its stages, each a `model.fit`, and resuming them."""

from __future__ import annotations

import logging
import math
import os
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_deeplab import data, losses, recipes, validation
from keras_deeplab.analysis import live_taps
from keras_deeplab.data.audit import LARGEST_CROP
from keras_deeplab.data.augmentation.augmenting import Transform
from keras_deeplab.distribution import evaluation_batches, training_batches
from keras_deeplab.files import digest, full_disk_named, write_json, write_text
from keras_deeplab.graph.network import all_layers, all_norms
from keras_deeplab.inference import logits_spec, warn_of_softmax
from keras_deeplab.losses.summing import takes_class_weights
from keras_deeplab.metrics import checked_names, key_of_class
from keras_deeplab.models import MultiScale, SegmentationModel, UNet
from keras_deeplab.models.multi_scale import checked_scales, unwrapped
from keras_deeplab.recipes import Recipe
from keras_deeplab.tensorboard import TensorBoard, check_installed
from keras_deeplab.trainer.building import ModelBuilder
from keras_deeplab.trainer.callbacks import (
    Checkpoint,
    EpochTimes,
    History,
    Progress,
    SeedEpochs,
    StopOnNonFinite,
)
from keras_deeplab.trainer.finishing import PICTURES, few_images, final_model, finish
from keras_deeplab.trainer.run_folder import MONITOR, RunFolder
from keras_deeplab.trainer.workers import StartTogether, on_chief
from keras_deeplab.weights.readers.keras_file import check_can_be_loaded

logger = logging.getLogger(__name__)

VALIDATIONS = 40  # of a long run
SIDE = 64  # of an image of any size, at which the size of the logits is computed
PART_SIZE = 2048  # pixels a side: larger validation images are cut
SMALL_CROP, LONG_SIDE = 0.1, 1024  # share of an image, and a side in pixels of a good one
# Fields of a recipe that are arguments of `data.training_dataset`.
DATASET_FIELDS = {field.name for field in fields(Recipe)} & set(
    signature(data.training_dataset).parameters
)


@dataclass(frozen=True)
class FitResult:
    """The result of `fit`.

    Attributes:
        model: The final model with test-time augmentation, a model of this package in float32: of
            a run in a folder the best one by validation mean IoU, else that after the last step.
        history: Loss and scores of each epoch of this call, as `model.fit` returns them, with
            `epoch`; scores of the validation only for the epochs that were validated.
        best_score: The best validation mean IoU; None without a validation.
        scores: What `keras_deeplab.evaluate` returns for `model`, with its `split`; of a run in a
            folder with the calibration error and the confusion matrix. Workers that are not the
            chief have none, and the trained model as `model`.
        folder: The files of the run; None without `run_dir`.
    """

    model: keras.Model
    history: dict[str, list[float]]
    best_score: float | None
    scores: dict[str, Any] | None
    folder: RunFolder | None


def fit(
    model: keras.Model | ModelBuilder | str,
    source: data.Source | str | os.PathLike,
    recipe: Recipe | str | None = None,
    *,
    run_dir: str | os.PathLike | None = None,
    steps_per_epoch: int | None = None,
    seed: int = 0,
    test_scales: Sequence[float] | None = None,
    test_flip: bool = False,
    tensorboard: bool = False,
    strategy: tf.distribute.Strategy | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    transform: Transform | None = None,
    verbose: int = 1,
) -> FitResult:
    """Trains a segmentation model by a recipe, scores it and exports it.

    The data is audited, then each stage of the recipe is a `model.fit`. With `run_dir` the last and
    the best model, the history, the scores, a report (`report.html`), pictures of predictions and a
    SavedModel are written there, and the same call resumes a run that was stopped, bit for bit.
    Without `run_dir` nothing is written.

    Args:
        model: A segmentation model from pixels in 0..255 to logits, trained as it is and in place
            (a second stage trains a copy); or a `ModelBuilder` or the name of a model, built with
            the recipe's arguments and output stride.
        source: The data, or the path of a folder (see `data.Folder`).
        recipe: A recipe, or its name in `recipes.RECIPES`; by default "scratch" for a model that is
            built without weights, else "finetune".
        run_dir: New folder for the files of the run, or that of an unfinished run.
        steps_per_epoch: Steps of an epoch; None for all images once, at most the recipe's steps.
        seed: Seed of the initial weights, the images' order and augmentation, and dropout.
        test_scales: Scales of the final model's test-time augmentation (see `MultiScale`).
        test_flip: Whether the final model predicts the mirrored image too.
        tensorboard: Whether to write curves and pictures for TensorBoard into `run_dir`.
        strategy: Strategy under which the model is, or will be, built; the current one by default
            (see `distribution.open_strategy`).
        callbacks: Further callbacks of `model.fit`, in each stage and on each worker. A run that is
            resumed during the training does not restore their state.
        transform: Your own augmentation, as in `data.training_dataset`.
        verbose: 1 for progress bars, 0 for none.

    Returns:
        A `FitResult`.

    Raises:
        ValueError: If an argument is out of its range, the model does not fit the recipe or the
            data, the loss or the weights become non-finite, or `run_dir` contains other files.
        data.DatasetError: If the audit finds faults in the data.
        OSError: If there is no space for a file; the run can be resumed.

    Example:

    >>> recipe = keras_deeplab.recipes.get("finetune").replace(steps=800)
    >>> result = keras_deeplab.fit(model, "photos", recipe, run_dir="runs/photos")
    >>> result.best_score
    0.78
    """
    if tensorboard:
        check_installed()
        if run_dir is None:
            raise validation.error("run_dir", "given for `tensorboard`", run_dir)
    validation.one_of("verbose", verbose, (0, 1))
    if test_scales is not None:
        test_scales = checked_scales(test_scales, "test_scales")
    seed = validation.integer("seed", seed, minimum=0)
    if steps_per_epoch is not None:
        steps_per_epoch = validation.integer("steps_per_epoch", steps_per_epoch)
    if strategy is None:
        strategy = getattr(model, "distribute_strategy", None) or tf.distribute.get_strategy()
    data_name = source_name(source)
    if isinstance(source, str | os.PathLike):
        source = data.open_source(source)
    source.check_split("train")
    if isinstance(model, str):
        model = ModelBuilder(model)
    recipe = recipe_for(model, recipe)
    _check_model(model, recipe, source.info, strategy)
    if not isinstance(model, ModelBuilder):
        if run_dir is not None:
            check_can_be_loaded(model)
        final_model(model, test_scales, test_flip, recipe.image_scale)  # raises early
    chief = strategy.extended.should_checkpoint
    folder = RunFolder(Path(run_dir)) if run_dir is not None and chief else None
    if run_dir is not None:  # before the audit, which may take minutes
        on_chief(strategy, lambda: folder.check_unfinished())
    trained_on = resized(source, recipe)
    report = data.audit(trained_on)
    recipe = for_data(recipe, report.splits["train"], source.info.classes)
    if steps_per_epoch is None:
        steps_per_epoch = recipe.steps_per_epoch(len(source.names("train")))
    logger.info("%s\n%s", report, recipe)
    if not logger.isEnabledFor(logging.INFO):  # else they are part of the report
        for each in (*report.warnings, *(one for one in report.findings if one.is_warning)):
            logger.warning("%s", each)
    _warn_of_small_crops(report.splits["train"], recipe)
    read = [asdict(part) for split, part in report.splits.items() if split != "test"]
    arguments = {
        **(model.to_dict() if isinstance(model, ModelBuilder) else {"model": _architecture(model)}),
        "data": data_name,
        "data_files": source.fingerprint(),
        "data_labels": digest(read),
        "recipe": recipe.to_dict(),
        "seed": seed,
        "steps_per_epoch": steps_per_epoch,
        "test_scales": None if test_scales is None else list(test_scales),
        "test_flip": test_flip,
        "transform": transform and getattr(transform, "__qualname__", type(transform).__name__),
    }
    run = Training(model, recipe, trained_on, report, strategy, steps_per_epoch, seed, folder)
    run.callbacks, run.transform = list(callbacks), transform
    if transform is not None:
        run.warn_of_dark_images()
    if verbose and chief:
        run.callbacks.append(Progress(source.info.classes, steps_per_epoch, sum(run.epochs)))
    keras.utils.set_random_seed(seed)
    finished: list[Any] = []

    def begin() -> int:
        epochs = folder.begin(arguments)
        if folder.trained.exists():
            epochs = sum(run.epochs)
        write_json(folder.dataset, source.info.to_dict())
        if epochs:
            logger.info("Resuming from epoch %d of %d in %s", epochs, sum(run.epochs), folder.path)
        else:
            logger.info("Writing to %s", folder.path)
        return epochs

    def end(trained: keras.Model) -> None:
        if folder is not None:  # callbacks may end a training early
            write_text(folder.trained, "")
        final = (test_scales, test_flip, recipe.image_scale)
        finished.extend(finish(trained, source, folder, *final, verbose))
        if folder is not None:
            folder.trained.unlink()

    try:
        with ExitStack() as stack:
            if run_dir is not None:
                stack.enter_context(full_disk_named(Path(run_dir)))
                run.epochs_done = on_chief(strategy, begin)
            if tensorboard and folder is not None:
                run.curves = folder.curves
            elif tensorboard:  # on all workers, as reading the confusion matrix is collective
                run.curves = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            trained, history = run.train()
            on_chief(strategy, lambda: end(trained))
    except tf.errors.InvalidArgumentError as fault:
        if "ValueError: " not in fault.message:
            raise
        advice = "Mend it, then train again" + ", which resumes" * (run_dir is not None)
        raise ValueError(f"{data.source.reason(fault)}. {advice}.") from fault
    finally:
        if folder is not None:
            folder.lock.release()
    final, scores = finished or (trained, None)
    best = np.nanmax([-np.inf, *history.get(MONITOR, [])])
    best = float(best) if folder is None else folder.best_score()
    return FitResult(final, history, best if np.isfinite(best) else None, scores, folder)


def resized(source: data.Source, recipe: Recipe) -> data.Source:
    """The images of a source at the scale at which a recipe trains."""
    return source if recipe.image_scale == 1 else data.Resized(source, recipe.image_scale)


def source_name(source: data.Source | str | os.PathLike) -> str:
    """The name of a source in the settings of a run: its path, or its type."""
    if not isinstance(source, str | os.PathLike):
        return type(source).__name__
    path = os.fspath(source)
    return path if "://" in path else os.path.normpath(path)


def recipe_for(model: keras.Model | ModelBuilder, recipe: Recipe | str | None) -> Recipe:
    """The recipe of a name for a model, or the default one."""
    if not isinstance(recipe, Recipe):
        is_random = isinstance(model, ModelBuilder) and model.weights is None
        recipe = recipes.get(recipe or ("scratch" if is_random else "finetune"), _network(model))
    loss = losses.parse(recipe.loss, None, keras.optimizers.SGD())
    if recipe.class_weights is None or takes_class_weights(loss):
        return recipe
    logger.warning("The loss %s takes no class weights: they are left out.", recipe.loss)
    return recipe.replace(class_weights=None)


def _network(model: keras.Model | ModelBuilder) -> str | None:
    """Network name that selects the overrides of a recipe (`recipes.get`)."""
    if isinstance(model, ModelBuilder):
        return model.network
    model = unwrapped(model)
    backbone = model.get_config()["backbone"] if isinstance(model, SegmentationModel) else None
    if backbone is None and isinstance(model, UNet):
        return "unet"
    return backbone if isinstance(backbone, str) else None


def _check_model(
    model: keras.Model | ModelBuilder,
    recipe: Recipe,
    info: data.DatasetInfo,
    strategy: tf.distribute.Strategy,
) -> None:
    if isinstance(model, ModelBuilder):
        model.check(recipe)
        policy = f"mixed_{model.mixed_precision}"
    elif recipe.stage2_share and not hasattr(model, "with_output_stride"):
        rule = "a model with `with_output_stride` for a recipe with two stages"
        raise validation.error("model", rule, type(model).__name__)
    else:
        policy = model.dtype_policy.name
        if recipe.image_scale != 1 and isinstance(model, MultiScale):
            rule = "the network inside, `model.model`, with an `image_scale`"
            raise validation.error("model", rule, model)
        spec, num_classes = logits_spec(model)
        if num_classes != info.num_classes:
            rule = f"a model of {info.num_classes} classes, as many as the source has"
            raise validation.error("model", rule, model.output_shape)
        if spec.shape[-1] != info.channels:
            rule = f"a model of {info.channels} channels, as many as the source's images have"
            raise validation.error("model", rule, model.input_shape)
        sides = tuple(side or SIDE for side in spec.shape[1:3])
        is_own = not isinstance(unwrapped(model), SegmentationModel | UNet)
        found = model.compute_output_shape((1, *sides, spec.shape[-1]))[1:3] if is_own else sides
        if not tf.TensorShape(found).is_compatible_with(sides):
            advice = "End it with `layers.ResizeLike`"
            rule = f"one whose logits have the size of the image, {sides}"
            raise validation.error("model", rule, found, advice)
        if not model.trainable_weights:
            raise validation.error("model", "a model with weights that are not frozen", model)
        warn_of_softmax(model)
    if info.num_classes < 2:
        raise validation.error("source", "a data set of two classes or more", info.classes)
    checked_names(info.num_classes, [key_of_class(name) for name in info.classes])
    replicas = strategy.num_replicas_in_sync
    if recipe.batch_size % replicas:
        rule = f"divisible by the number of replicas, {replicas}"
        raise validation.error("batch_size", rule, recipe.batch_size)
    if policy == "mixed_float16" and replicas > 1:
        raise ValueError(
            "float16 does not work with several replicas: Keras scales the loss by what one "
            "replica computes. Use bfloat16."
        )


def for_data(recipe: Recipe, train: data.SplitReport, classes: Sequence[str]) -> Recipe:
    """Sets the values that a recipe leaves to the data.

    The crop size is between the smallest and the largest image's; the classes that are pasted are
    the rarer half.
    """
    if recipe.crop_size is None:
        recipe = recipe.replace(crop_size=train.crop_size)
    if recipe.copy_paste and recipe.copy_paste_classes is None:
        present = [number for number, share in enumerate(train.class_share) if share]
        rare = sorted(present, key=lambda number: train.class_share[number])
        names = [classes[number] for number in rare[: max(1, len(rare) // 2)]]
        recipe = recipe.replace(copy_paste_classes=names)
    for name in recipe.copy_paste_classes or ():
        validation.one_of("copy_paste_classes", name, classes)
    return recipe


def _architecture(model: keras.Model) -> str:
    """Identifies a model without layer names and settings that training changes."""
    changed_in_training = {"name", "trainable", "momentum", "synchronized", "frozen_statistics"}
    layers = [
        (type(layer).__name__, {k: v for k, v in config.items() if k not in changed_in_training})
        for layer in all_layers(model).values()
        if not isinstance(layer, keras.Model)
        for config in [layer.get_config()]
    ]
    return f"{type(model).__name__} {digest([layers, [list(w.shape) for w in model.weights]])}"


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
            _check_frozen_norms(model, recipe)
            _check_input_size(model, recipe, self.report)
            _warn_of_padding(model, recipe.crop_size)
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
        with warnings.catch_warnings():  # the report has named classes without pixels
            warnings.simplefilter("ignore", UserWarning)
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
        # The last epoch is validated; epochs count from 1.
        validated = [e for e in range(first + 1, last + 1) if (last - e) % self._every == 0]
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

    @property
    def _every(self) -> int:
        """Epochs from one validation to the next."""
        return -(-sum(self.epochs) // VALIDATIONS)

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


def _check_input_size(model: keras.Model, recipe: Recipe, report: data.Report) -> None:
    """Raises a ValueError if a model of a fixed input size gets other crops or whole images."""
    sides = logits_spec(model)[0].shape[1:3]
    split = "val" if "val" in report.splits else "train"  # of the scores
    scored, found = report.splits[split], {"crop_size": recipe.crop_size}
    found |= {f"smallest of {split}": scored.smallest, f"largest of {split}": scored.largest}
    if wrong := {what: size for what, size in found.items() if not sides.is_compatible_with(size)}:
        rule = f"of any input size, or have crops and images of its {tuple(sides)}"
        raise validation.error("model", rule, wrong)


def _check_frozen_norms(model: keras.Model, recipe: Recipe) -> None:
    """Raises a ValueError if batch norms without statistics would be frozen."""
    norms = all_norms(model).values()
    if recipe.batch_norm == "train" or not norms:
        return
    statistics = [(np.asarray(n.moving_mean), np.asarray(n.moving_variance)) for n in norms]
    if all(np.all(mean == 0) and np.all(variance == 1) for mean, variance in statistics):
        raise ValueError(
            f"The recipe {recipe.name} has batch_norm {recipe.batch_norm!r}, which needs trained "
            "statistics: start from `weights`, or replace batch_norm by 'train'."
        )


def _warn_of_padding(model: keras.Model, crop_size: tuple[int, int]) -> None:
    """Logs a warning if the crop is so small that atrous convolutions of the head become 1x1.

    In figure 4 of the DeepLabV3 paper the positions at which only the centre of a 3x3 kernel is on
    the map become the majority at a rate of 0.85 times the side of the map; the papers' own rates
    are at most 0.6 times the side of theirs.
    """
    found = []
    with suppress(ValueError):  # a model whose geometry is not known
        inside = f"{model.backbone.name}/" if hasattr(model, "backbone") else "/"
        found = [
            taps
            for taps in live_taps(model, *crop_size)
            if taps.positions.get(1, 0) > 0.5 and not taps.name.startswith(inside)
        ]
    if found:
        rates = ", ".join(dict.fromkeys(str(max(taps.rate)) for taps in found))
        height, width = found[0].map_size
        logger.warning(
            "Crops of %dx%d become feature maps of %dx%d, on which the atrous rates %s act mostly "
            "as 1x1 convolutions: their other taps are in the padding. Set a larger `crop_size` or "
            "smaller `aspp_rates`.",
            *crop_size[::-1],
            width,
            height,
            rates,
        )


def _warn_of_small_crops(train: data.SplitReport, recipe: Recipe) -> None:
    """Logs a warning if crops are small parts of large images, as of a phone's photographs."""
    height, width = recipe.crop_size
    share = height * width / math.prod(train.largest)
    reduction = round(max(train.largest) / LONG_SIDE)
    if share < SMALL_CROP and reduction > 1:
        logger.warning(
            "Crops of %dx%d are %.2g %% of images of up to %dx%d. Photographs are better reduced, "
            "with the recipe's image_scale=%.2g: the final model takes them at their own size.",
            *(width, height, 100 * share, *train.largest[::-1], recipe.image_scale / reduction),
        )
