"""Trains a DeepLab: `python -m training.train --data FOLDER`."""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file, for which Python looks for packages beside it alone
    sys.path[0] = str(Path(__file__).parents[1])
    runpy.run_module("training.train", run_name="__main__")

import keras

import keras_deeplab
from keras_deeplab import data, names, recipes
from keras_deeplab.cli.options import (
    MODELS,
    SIZE,
    Parser,
    add_test_time_augmentation,
    command,
    one_of,
    positive,
    positive_float,
)
from keras_deeplab.diagnosis import default_optimizer
from keras_deeplab.files import full_disk_named, write_json
from keras_deeplab.tensorboard import check_installed
from training import distribution
from training.building import build, start, unfold
from training.finishing import finish
from training.fitting import Run
from training.recipe_options import FIELDS, chosen_recipe, given, of_the_file
from training.run_folder import RunFolder, next_free

# The values of a recipe that a test on a few images heeds, where they are given.
OVERFITTING = {"batch_norm", "crop_size", "learning_rate", "loss", "model", "output_stride"}
INTERRUPTED = 130  # as a shell calls it


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = Parser(
        hints={
            **{names.key(field): f"Give it as --set {field}=VALUE." for field in FIELDS},
            "resume": "The same command resumes a run that was stopped.",
        },
        prog="python -m training.train",
        description="Trains a segmentation model, scores it and exports it.",
    )
    add = made.add_argument
    add("--data", default="shapes", help="'shapes' or a folder root/{train,val}/{images,labels}")
    add(
        "--model",
        **one_of(sorted(MODELS)),
        help="default: what --weights holds, or deeplab_v3_plus",
    )
    add(
        "--backbone",
        **one_of(keras_deeplab.backbones.NAMES),
        help="default: that of --weights, or mobilenet_v2, for deeplab_v1 vgg16, for unet its own "
        "network",
    )
    add(
        "--weights",
        help="file to start from, in any format of keras_deeplab.weights.load, or the name of "
        "published weights, such as imagenet",
    )
    add("--mixed-precision", **one_of(("bfloat16", "float16")), help="default: float32")
    add(
        "--distribute",
        **one_of(distribution.NAMES),
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
        help="only test whether the model can learn N images by heart, and say why not",
    )
    add_test_time_augmentation(
        made.add_argument_group("test-time augmentation", "Of the model when it is trained.")
    )
    _add_recipe(made.add_argument_group("recipe", "How it is trained; the recipe says what else."))
    return made


def _add_recipe(group: Any) -> None:
    add = group.add_argument
    add("--recipe", **one_of(recipes.RECIPES), default="finetune")
    add("--epochs", type=positive, help="passes through the images, in place of the steps")
    add("--steps", type=positive, help="in place of the epochs, rounded up to whole ones")
    add("--steps-per-epoch", type=positive, help="default: all images once")
    add("--batch-size", type=positive, help="over all replicas")
    add("--crop-size", **SIZE, help="one number for a square; default: from the images")
    add("--learning-rate", type=positive_float)
    add("--output-stride", type=positive, help="in training; default: the model's")
    add("--loss", help="such as 'cross_entropy + 0.5 * lovasz_softmax(stride=4)'")
    add("--class-weights", **one_of(("median", "inverse")), help="from how often classes occur")
    add("--fine-epochs", type=positive, help="of a second stage at output stride 8")
    add(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help="any other value of the recipe",
    )


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command."""
    options = parser().parse_args(argv)
    if options.tensorboard:
        check_installed()  # now, not after the audit
    strategy = distribution.open_strategy(options.distribute)
    source = data.open_source(options.data)
    source.check_split("train")
    report = data.audit(source)
    print(report)
    weights = start(options)
    recipe = chosen_recipe(options, report)
    if weights is not None and weights.model == MODELS[options.model].__name__:
        recipe = of_the_file(recipe, options)
    if options.overfit is not None:
        return overfit(options, recipe, source, weights)
    print(recipe)
    if options.mixed_precision == "float16" and strategy.num_replicas_in_sync > 1:
        raise ValueError(
            "--mixed-precision float16 does not work with --distribute: Keras scales the loss by "
            "what one replica sees. Take bfloat16."
        )
    distribution.check_batch(recipe.batch_size, strategy)
    name = f"{Path(options.data).resolve().name}-{options.model}-{options.backbone or 'own'}"
    path = options.output or next_free(Path("runs") / name)
    folder = RunFolder(distribution.folder(strategy, path))
    arguments = run_arguments(options, recipe)
    try:
        with full_disk_named(path):
            epochs_done = distribution.on_chief(strategy, lambda: folder.begin(arguments))
            write_json(folder.dataset, source.info.to_dict())
            keras.utils.set_random_seed(options.seed)
            run = Run(options, recipe, source, report, folder, epochs_done, strategy)
            if epochs_done:
                print(f"Resuming from epoch {epochs_done} of {sum(run.epochs)} in {path}")
            else:
                print(f"Writing to {path}")
            run.train(weights)
            distribution.on_chief(strategy, lambda: finish(folder, source, options))
    except KeyboardInterrupt:
        print(f"\nInterrupted: run the same command again to resume {path}.")
        return INTERRUPTED
    finally:
        folder.unlock()
    return 0


def overfit(
    options: argparse.Namespace,
    recipe: recipes.Recipe,
    source: data.Source,
    weights: keras_deeplab.weights.Checkpoint | None,
) -> int:
    """Tests whether the model can learn a few images by heart; writes nothing.

    With a loss and a rate that fit any model, unless they are given: the recipe's are for a run.

    Raises:
        ValueError: If a value of the recipe is given that such a test does not have.
    """
    said = set(given(options))
    if options.steps_per_epoch is not None:
        said.add("steps_per_epoch")
    if said - OVERFITTING:
        raise ValueError(
            f"--overfit takes {', '.join(sorted(OVERFITTING))} of a recipe; received "
            f"{', '.join(sorted(said - OVERFITTING))}, which would have no effect."
        )
    keras.utils.set_random_seed(options.seed)
    model = build(options, recipe, source.info, weights)
    images = data.training_dataset(source, crop_size=recipe.crop_size, scales=(1.0, 1.0))
    unfold(model, weights, images)
    if "batch_norm" in said:
        keras_deeplab.batch_norm.set_policy(model, recipe.batch_norm)
    if "learning_rate" in said:
        optimizer = keras.optimizers.AdamW(recipe.learning_rate, global_clipnorm=5.0)
    else:
        optimizer = default_optimizer(model)
    settings: dict[str, Any] = {"optimizer": optimizer}
    if "loss" in said:
        settings["loss"] = keras_deeplab.losses.parse(recipe.loss, optimizer=optimizer)
    report = keras_deeplab.overfit(
        model,
        source,
        count=options.overfit,
        crop_size=recipe.crop_size if "crop_size" in said else None,
        compile=settings,
    )
    print(report)
    return 0 if report.fits else 1


def run_arguments(options: argparse.Namespace, recipe: recipes.Recipe) -> dict[str, Any]:
    """What a run is, as JSON: the recipe, and the options that are not in it."""
    kept = ("data", "model", "backbone", "weights", "mixed_precision", "seed", "steps_per_epoch")
    plain = {key: getattr(options, key) for key in (*kept, "scales", "flip")}
    plain["data"] = os.path.normpath(plain["data"])
    return {**plain, "recipe": recipe.to_dict()}


if __name__ == "__main__":
    raise SystemExit(main())
