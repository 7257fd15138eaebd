"""Training by a recipe, with scores and files."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_deeplab import data, validation
from keras_deeplab.data.augmentation.augmenting import Transform
from keras_deeplab.files import digest, full_disk_named, write_json, write_text
from keras_deeplab.graph.network import all_layers
from keras_deeplab.models.multi_scale import checked_scales
from keras_deeplab.recipes import Recipe
from keras_deeplab.tensorboard import check_installed
from keras_deeplab.trainer import checks
from keras_deeplab.trainer.building import ModelBuilder
from keras_deeplab.trainer.callbacks import Progress
from keras_deeplab.trainer.defaults import for_data, recipe_for, resized, source_name
from keras_deeplab.trainer.finishing import final_model, finish
from keras_deeplab.trainer.run_folder import DATA, LABELS, MONITOR, RunFolder
from keras_deeplab.trainer.stages import Training
from keras_deeplab.trainer.workers import on_chief
from keras_deeplab.weights.readers.keras_file import check_can_be_loaded

logger = logging.getLogger(__name__)


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
    recipe: Recipe | str | os.PathLike | None = None,
    *,
    run_dir: str | os.PathLike | None = None,
    steps_per_epoch: int | None = None,
    seed: int = 0,
    test_scales: Sequence[float] | None = None,
    test_flip: bool = False,
    tensorboard: bool = False,
    strategy: tf.distribute.Strategy | None = None,
    callbacks: Sequence[keras.callbacks.Callback] | None = None,
    transform: Transform | None = None,
    verbose: str | int = "auto",
) -> FitResult:
    """Trains a segmentation model by a recipe, scores it and exports it.

    The data is audited, then each stage of the recipe is a `model.fit`. With `run_dir` the last and
    the best model, the history, the scores, a report (`report.html`), pictures of predictions and a
    SavedModel are written there, and the same call resumes a run that was stopped, bit for bit on a
    CPU with the same number of cores. A run that stopped in its first epoch begins again with the
    model as it then is. Without `run_dir` nothing is written.

    Args:
        model: A segmentation model from pixels in 0..255 to logits, trained as it is and in place
            (a second stage trains a copy); or a `ModelBuilder` or the name of a model, built with
            the recipe's arguments and output stride.
        source: The data, or its path (see `data.open_source`).
        recipe: A recipe, its name in `recipes.RECIPES` or its `.json` file (see `recipes.get`); by
            default "scratch" for a model that is built without weights, else "finetune".
        run_dir: New folder for the files of the run, or that of an unfinished run.
        steps_per_epoch: Steps of an epoch; None for all images once, at most the recipe's steps.
        seed: Seed of the initial weights, the images' order and augmentation, and dropout.
        test_scales: Scales of the final model's test-time augmentation (see `MultiScale`).
        test_flip: Whether the final model predicts the mirrored image too.
        tensorboard: Whether to write curves and pictures for TensorBoard into `run_dir`.
        strategy: Strategy under which the model is, or will be, built; the current one by default
            (see `distribution.open_strategy`).
        callbacks: Further callbacks of `model.fit`, in each stage and on each worker. A run that is
            resumed during the training does not restore their state. Those that set the learning
            rate or store backups are refused: the recipe and `run_dir` do.
        transform: Your own augmentation, as in `data.training_dataset`.
        verbose: `"auto"` or 1 for progress bars, 2 for one line per epoch, 0 for silent.

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
    verbose = 1 if validation.one_of("verbose", verbose, ("auto", 0, 1, 2)) == "auto" else verbose
    if test_scales is not None:
        test_scales = checked_scales(test_scales, "test_scales")
    seed = validation.integer("seed", seed, minimum=0)
    if steps_per_epoch is not None:
        steps_per_epoch = validation.integer("steps_per_epoch", steps_per_epoch)
    if strategy is None:
        strategy = getattr(model, "distribute_strategy", None) or tf.distribute.get_strategy()
    data_name = source_name(source)
    source = data.open_source(source)
    source.check_split("train")
    if isinstance(model, str):
        model = ModelBuilder(model)
    recipe = recipe_for(model, recipe)
    callbacks = checks.checked_callbacks(callbacks)
    checks.check_model(model, recipe, source.info, strategy)
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
    checks.warn_of_small_crops(report.splits["train"], recipe)
    read = [asdict(part) for split, part in report.splits.items() if split != "test"]
    arguments = {
        **(model.to_dict() if isinstance(model, ModelBuilder) else {"model": _architecture(model)}),
        DATA: data_name,
        "data_files": source.fingerprint(),
        LABELS: digest(read),
        "recipe": recipe.to_dict(),
        "seed": seed,
        "steps_per_epoch": steps_per_epoch,
        "test_scales": None if test_scales is None else list(test_scales),
        "test_flip": test_flip,
        "transform": transform and getattr(transform, "__qualname__", type(transform).__name__),
    }
    run = Training(model, recipe, trained_on, report, strategy, steps_per_epoch, seed, folder)
    run.callbacks, run.transform = callbacks, transform
    if transform is not None:
        run.warn_of_dark_images()
    if verbose and chief:
        run.callbacks.append(
            Progress(source.info.classes, steps_per_epoch, sum(run.epochs), verbose)
        )
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
