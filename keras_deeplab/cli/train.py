"""`keras-deeplab train --data FOLDER`: a segmentation model, trained, scored and exported."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

import keras_deeplab
from keras_deeplab import data, distribution, names, recipes
from keras_deeplab.cli.options import (
    Parser,
    add_test_time_augmentation,
    command,
    one_of,
    positive,
)
from keras_deeplab.cli.recipe_options import FIELDS, add_recipe, recipe_changes
from keras_deeplab.diagnosis import default_optimizer
from keras_deeplab.evaluation import scores_table
from keras_deeplab.trainer import MODELS, ModelBuilder, next_free
from keras_deeplab.trainer.building import PRECISIONS

# The values of a recipe that overfitting a few images uses, where they are set.
OVERFITTING = {"batch_norm", "crop_size", "learning_rate", "loss", "output_stride"}
INTERRUPTED = 130  # the exit status of shells


def parser() -> Parser:
    """Returns the parser of the command line."""
    made = Parser(
        hints={
            **{names.key(field): f"Give it as --set {field}=VALUE." for field in FIELDS},
            "resume": "The same command resumes a run that was stopped.",
        },
        prog="keras-deeplab train",
        description="Trains a segmentation model, scores it and exports it.",
    )
    add = made.add_argument
    add("--data", default="shapes", help="'shapes' or a folder root/{train,val}/{images,labels}")
    add("--model", **one_of(MODELS), help="default: that of --weights, or deeplab_v3_plus")
    add(
        "--backbone",
        **one_of(keras_deeplab.backbones.NAMES),
        help="default: that of --weights, or mobilenet_v2, for deeplab_v1 vgg16, for unet its own "
        "network",
    )
    add("--weights", help="file to start from, or name of published weights, such as imagenet")
    add("--mixed-precision", **one_of(PRECISIONS), help="default: float32")
    add(
        "--distribute",
        **one_of(distribution.STRATEGIES),
        default="none",
        help="all GPUs of this machine or all machines of TF_CONFIG; see docs/distributed.md",
    )
    add("--seed", type=int, default=0)
    add("--tensorboard", action="store_true", help="write curves and pictures into the run")
    add("--output", type=Path, help="folder of the run; default: runs/DATA-MODEL-BACKBONE")
    add(
        "--overfit",
        type=positive,
        metavar="N",
        help="only test whether the model can overfit N images, with a diagnosis if it cannot",
    )
    augmentation = made.add_argument_group("test-time augmentation", "Applied to the final model.")
    add_test_time_augmentation(augmentation)
    add_recipe(made.add_argument_group("recipe", "The hyperparameters of the training."))
    return made


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command."""
    options = parser().parse_args(argv)
    strategy = distribution.open_strategy(options.distribute)
    changes = recipe_changes(options)
    builder = ModelBuilder(
        options.model,
        backbone=options.backbone,
        weights=options.weights,
        mixed_precision=options.mixed_precision,
        arguments=changes.pop("model", None),
    )
    if "output_stride" in changes and not builder.has_output_stride:
        raise ValueError(f"--output-stride: {builder.name} has no output stride to choose.")
    default = "shapes" if options.data == "shapes" else "finetune"
    recipe = recipes.find(options.recipe or default, builder.network).replace(**changes)
    if options.overfit is not None:
        return overfit(options, builder, recipe, changes)
    name = f"{Path(options.data).resolve().name}-{builder.name}-{builder.backbone or 'own'}"
    path = options.output or next_free(Path("runs") / name)
    try:
        result = keras_deeplab.fit(
            builder,
            options.data,
            recipe,
            run_dir=path,
            steps_per_epoch=options.steps_per_epoch,
            seed=options.seed,
            test_scales=options.scales,
            test_flip=options.flip,
            tensorboard=options.tensorboard,
            strategy=strategy,
        )
    except KeyboardInterrupt:
        print(f"\nInterrupted: run the same command again to resume {path}.")
        return INTERRUPTED
    if result.scores is not None:
        print(scores_table(result.scores, result.scores["split"]))
        folder = result.folder
        for file in (folder.best_model, folder.saved_model, folder.metrics, folder.picture):
            print(f"Wrote {file}")
    return 0


def overfit(
    options: argparse.Namespace,
    builder: ModelBuilder,
    recipe: recipes.Recipe,
    changes: dict[str, Any],
) -> int:
    """Overfits a few images, with a loss and a learning rate for any model unless they are set."""
    unused = set(changes) - OVERFITTING
    unused |= {"steps_per_epoch"} if options.steps_per_epoch is not None else set()
    if unused:
        raise ValueError(
            f"--overfit uses {', '.join(sorted(OVERFITTING | {'model'}))} of a recipe. Received: "
            f"{', '.join(sorted(unused))}, which would have no effect."
        )
    source = data.open_source(options.data)
    report = data.audit(source)
    print(report)
    keras.utils.set_random_seed(options.seed)
    crop_size = recipe.crop_size or report.splits["train"].smallest
    images = data.training_dataset(source, crop_size=crop_size, scales=(1.0, 1.0), cache=False)
    model = builder.build(source.info.num_classes, recipe, images)
    if "batch_norm" in changes:
        keras_deeplab.batch_norm.set_policy(model, recipe.batch_norm)
    if "learning_rate" in changes:
        optimizer = keras.optimizers.AdamW(recipe.learning_rate, global_clipnorm=5.0)
    else:
        optimizer = default_optimizer(model)
    settings: dict[str, Any] = {"optimizer": optimizer}
    if "loss" in changes:
        settings["loss"] = keras_deeplab.losses.parse(recipe.loss, optimizer=optimizer)
    report = keras_deeplab.overfit(
        model,
        source,
        count=options.overfit,
        crop_size=changes.get("crop_size"),
        compile=settings,
    )
    print(report)
    return 0 if report.fits else 1
